"""How ranges are found: methods and numbers of samples against each other, and INT8 on CPUs timed."""
