"""Jobs on a cluster: submitting, following and fetching them."""
