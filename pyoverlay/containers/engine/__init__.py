"""How do images run, and become images again? Our own small container engine."""
