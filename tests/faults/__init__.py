"""What can go wrong from outside, tried at random and counted: `make test-faults N=1000`, see docs/integrity.md."""
