"""Generation, composition and their benchmarks."""
