"""One thread a process: pytest runs a process per core, and small products lose more than they gain by threads."""

import torch

torch.set_num_threads(1)
