"""Machines of a Supervisor: virtual machines as objects of the VM Service (`vmoperator.vmware.com`) in a namespace.

What is built here is pure but for `machines`, which is the only module that talks with a cluster. Only where the
VM Service is served (capability `vm-service`) does any of it happen. Fields and their meaning: repository
vmware-tanzu/vm-operator, `api/v1alpha3` and later; what its webhooks refuse: `webhooks/virtualmachine` there.
"""
