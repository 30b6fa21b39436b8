package main

import (
	"slices"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Rights is the library's authorization manager, which grants everything to everybody when it is asked, with
// privileges that nobody has. It changes what is answered only: the library enforces none.
type Rights struct {
	*simulator.AuthorizationManager

	lock   sync.Mutex
	denied []string
}

func newRights(reg *simulator.Registry) *Rights {
	r := &Rights{AuthorizationManager: reg.AllReference("AuthorizationManager")[0].(*simulator.AuthorizationManager)}
	reg.Put(r)
	return r
}

// Deny lets nobody have some privileges from now on, and gives back those denied before.
func (r *Rights) Deny(privileges []string) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.denied = privileges
}

// HasPrivilegeOnEntities answers as the library does, but for what is denied.
func (r *Rights) HasPrivilegeOnEntities(req *types.HasPrivilegeOnEntities) soap.HasFault {
	body := r.AuthorizationManager.HasPrivilegeOnEntities(req).(*methods.HasPrivilegeOnEntitiesBody)
	r.lock.Lock()
	defer r.lock.Unlock()
	for i := range body.Res.Returnval {
		given := body.Res.Returnval[i].PrivAvailability
		for j := range given {
			given[j].IsGranted = given[j].IsGranted && !slices.Contains(r.denied, given[j].PrivId)
		}
	}
	return body
}
