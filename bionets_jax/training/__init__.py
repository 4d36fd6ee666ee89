"""The trainer. `train(config, workdir)` is the one loop; tasks plug into it."""
