package main

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Calls stands before the simulator: who may call, which calls go wrong, and how many there were.
type Calls struct {
	reg   *simulator.Registry
	rules *Rules
	tasks *Tasks

	sync.Mutex
	counts map[string]int
}

// beforeLogin are the methods that a vCenter answers to anybody. The library lets strangers read properties too.
var beforeLogin = []string{"Login", "RetrieveServiceContent", "CloneSession"}

// Check is asked before every call on a vCenter object, also those of the lab's own in-process client; a fault ends
// the call.
func (c *Calls) Check(ctx *simulator.Context, call *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if strings.HasPrefix(call.Name, "LoginBy") || strings.HasPrefix(call.Name, "LoginExtension") {
		return nil, &types.InvalidLogin{} // the library would take any token and any certificate
	}
	if ctx.Session == nil && !slices.Contains(beforeLogin, call.Name) {
		return nil, &types.NotAuthenticated{
			NoPermission: types.NoPermission{Object: &call.This, PrivilegeId: "System.View"},
		}
	}
	name := ""
	if e, ok := c.reg.Get(call.This).(mo.Entity); ok {
		name = e.Entity().Name
	}
	if r := c.rules.Strike(atCall, call.Name, name, call.This.Value); r != nil {
		time.Sleep(time.Duration(r.DelayMS) * time.Millisecond)
		if r.Fault != "" {
			return nil, c.tasks.faultOf(r, call.This)
		}
	}
	switch body := call.Body.(type) {
	case *types.AddCustomFieldDef:
		if body.MoType == "" {
			// The library says the kind of object as the type of the values too; a strict client reads no attribute
			// without one. A vCenter says this of every attribute.
			body.MoType = "xsd:string"
		}
	case *types.ImportVApp:
		if spec, ok := body.Spec.(*types.VirtualMachineImportSpec); ok && spec.ConfigSpec.Firmware == "" {
			// the library reads no firmware out of a descriptor; the lab's items start by EFI
			spec.ConfigSpec.Firmware = string(types.GuestOsDescriptorFirmwareTypeEfi)
		}
	case *types.AcquireTicket:
		if vm, ok := c.reg.Get(call.This).(*simulator.VirtualMachine); ok && ctx.Session != nil {
			ctx.Session.Put(&screen{VirtualMachine: vm}) // asked before the shared registry, for this one call
		}
	case *types.CloneVM_Task:
		return nil, c.missing(body.Spec.Location)
	case *types.RelocateVM_Task:
		if fault := c.missing(body.Spec); fault != nil {
			return nil, fault
		}
		if body.Spec.Host != nil { // otherwise it stays there, and keeps the GPUs that it has
			c.tasks.WillMove(call.This, *body.Spec.Host)
		}
	}
	return nil, nil
}

// missing is the fault for a place that is not there: the library would crash over it, holding the VM's lock.
func (c *Calls) missing(where types.VirtualMachineRelocateSpec) types.BaseMethodFault {
	for _, place := range []*ref{where.Datastore, where.Host, where.Pool, where.Folder} {
		if place != nil && c.reg.Get(*place) == nil {
			return &types.ManagedObjectNotFound{Obj: *place}
		}
	}
	return nil
}

// methodOf finds the method in a SOAP envelope: the first element in its body.
var methodOf = regexp.MustCompile(`<(?:[\w-]+:)?Body[^>]*>\s*<(?:[\w-]+:)?(\w+)`)

// Around wraps the simulator's HTTP side. A call is known by its SOAP method, or by its path elsewhere.
func (c *Calls) Around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Authorization"), "SIGN ") {
			w.WriteHeader(http.StatusUnauthorized) // the library would take any signature
			return
		}
		name := r.URL.Path
		if r.Method == http.MethodPost && (name == "/sdk" || strings.HasPrefix(name, "/sdk/") || name == "/pbm") {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if found := methodOf.FindSubmatch(body); found != nil {
				name = string(found[1])
			}
		}
		c.count(name)
		rule := c.rules.Strike(atHTTP, name)
		if rule == nil {
			next.ServeHTTP(w, r)
			return
		}
		select {
		case <-time.After(time.Duration(rule.DelayMS) * time.Millisecond):
		case <-r.Context().Done(): // the client has given up; the call goes on, as it would
		}
		switch {
		case rule.Status != 0:
			w.WriteHeader(rule.Status)
		case rule.Drop == dropBefore:
			panic(http.ErrAbortHandler)
		case rule.Drop == dropAfter:
			next.ServeHTTP(nowhere{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (c *Calls) count(name string) {
	c.Lock()
	defer c.Unlock()
	c.counts[name]++
}

// Counts returns calls by method since the last Forget.
func (c *Calls) Counts() map[string]int {
	c.Lock()
	defer c.Unlock()
	return maps.Clone(c.counts)
}

// Forget counts from nothing again.
func (c *Calls) Forget() {
	c.Lock()
	defer c.Unlock()
	c.counts = map[string]int{}
}

// nowhere takes an answer that nobody will get.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header       { return n.header }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) WriteHeader(int)             {}
