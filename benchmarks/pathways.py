"""Gene sets that regions of the kidney are rich in: in spots, in superpixels, and in superpixels without the image.

    python benchmarks/pathways.py --genes 1000

The sets are markers of the cells of the nephron and around it, and as many sets of the same sizes drawn at random from
the genes of the result, none of which should be found.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np

import sphistex as sx
from sphistex.bench.datasets import find
from sphistex.tl._genes import choose_genes

ENCODER = "efficientnet_lite0"
FEWEST = 4
SETS = {
    "podocyte": "NPHS1 NPHS2 PODXL WT1 PTPRO PTPRQ CLIC5 MAFB SYNPO PLA2R1",
    "proximal tubule": "LRP2 CUBN SLC34A1 ALDOB PDZK1 SLC5A12 SLC22A8 SLC13A3 GPX3 MIOX",
    "thick ascending limb": "UMOD SLC12A1 CLDN16 CLDN19 KCNJ1 CASR EGF",
    "distal tubule": "SLC12A3 CALB1 TRPM6 PVALB WNK1 KLHL3 TRPV5",
    "principal cell": "AQP2 AQP3 SCNN1G SCNN1B AVPR2 FXYD4 GATA3",
    "intercalated cell": "ATP6V1G3 ATP6V0D2 SLC4A1 SLC26A4 FOXI1 ATP6V1C2 ATP6V0A4",
    "endothelium": "PECAM1 EMCN VWF CD34 KDR FLT1 EHD3 PLVAP",
    "smooth muscle": "ACTA2 TAGLN MYH11 CNN1 MYLK RGS5 DES",
    "antigen presentation": "CD74 HLA-DRA HLA-DRB1 HLA-DPA1 HLA-DPB1 C1QA C1QB CD68 LYZ",
    "plasma cell": "IGHG1 IGKC JCHAIN MZB1 IGHA1 IGLC1 IGHG3",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=1000, help="most variable ones, beside the sets")
    parser.add_argument("--models", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sx.settings.progress = False
    sdata = find("kidney", None).read()
    members = {
        name: [gene for gene in genes.split() if gene in sdata["counts"].var_names] for name, genes in SETS.items()
    }
    members = {name: genes for name, genes in members.items() if len(genes) >= FEWEST}
    in_sets = [gene for genes in members.values() for gene in genes]
    genes = list(dict.fromkeys([*in_sets, *choose_genes(sdata["counts"], arguments.genes)]))
    rng = np.random.default_rng(0)
    drawn = {f"random {name}": list(rng.choice(genes, len(part), replace=False)) for name, part in members.items()}
    started = time.process_time()
    sx.tl.super_resolve(sdata, genes=genes, encoder=ENCODER, n_models=arguments.models)
    sx.tl.annotate(sdata, smooth_um=32)
    fitted = time.process_time()
    table = sx.tl.compare_enrichment(sdata, gene_sets=members | drawn, min_genes=FEWEST)
    print(f"{len(genes)} genes, {len(members)} sets; CPU seconds {fitted - started:.0f} and", end=" ")
    print(f"{time.process_time() - fitted:.0f} for the comparison")
    found = table[(table[["q_before", "q_after", "q_null"]] <= 0.05).any(axis=1)]
    print(found.round(4).to_string(index=False))
    by_chance = table["gene_set"].str.startswith("random")
    for name, part in (("markers", table[~by_chance]), ("random", table[by_chance])):
        counts = {when: int((part[f"q_{when}"] <= 0.05).sum()) for when in ("before", "after", "null")}
        print(f"{name}: found {counts}, only after {int(part['only_after'].sum())}, of {len(part)}")


if __name__ == "__main__":
    main()
