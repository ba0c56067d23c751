"""Speed of bundles on runners, side by side in one run."""
