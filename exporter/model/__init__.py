"""What is traced: transformers' own module, with our attention, experts, rope and cache layouts."""
