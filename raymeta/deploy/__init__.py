"""From the laptop to the cluster: files checked, searches submitted, runs brought home."""
