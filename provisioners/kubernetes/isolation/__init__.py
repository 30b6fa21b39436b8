"""What a certificate is made of: what is there, probes, reviews, attempts, connections, and their judging."""
