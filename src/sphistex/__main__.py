"""``python -m sphistex`` is the command ``sphistex``."""

from sphistex.cli import main

main(prog_name="sphistex")
