"""Files of served models brought into a mirror on NFS by a pod of ours, before an endpoint asks for them."""
