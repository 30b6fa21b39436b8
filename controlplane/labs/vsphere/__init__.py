"""A vCenter simulator on loopback whose hosts have GPUs and choose among them; nothing that it shows is real."""
