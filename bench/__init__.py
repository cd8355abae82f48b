"""What the library costs: paired comparisons, pytest-benchmark suites, and the records they leave in results/."""
