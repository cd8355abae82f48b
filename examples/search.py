"""A search by name: its genotype and its run folder. Without `data` a generated sample is searched, in about a minute."""

import sys

import fastdarts

if __name__ == "__main__":
    save = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
    found = fastdarts.search("mae-nas-cifar10", save=save, epochs=2)
    print(found.genotype)
    print(f"report: {found.folder / 'report.html'}")
