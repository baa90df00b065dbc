"""Training with Tandem on a Ray cluster: Ray Train places and supervises the workers, Tandem's binaries train."""
