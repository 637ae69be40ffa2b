"""The formulas in plain torch, slow and obvious: what every fast path is compared with."""
