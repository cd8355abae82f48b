import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, "/work/house")
from tests.support.runs import write_tree

write_tree(Path("/tmp/settings/tree"))
images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
np.savez("/tmp/settings/small.npz", images=images, labels=np.arange(16) % 2)
