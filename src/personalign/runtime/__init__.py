"""What runs need besides the science: threads, seeds, files, run directories, progress, training."""
