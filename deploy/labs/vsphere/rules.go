package main

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// Where a rule strikes.
const (
	atCall = "call" // the call itself fails, nothing was done
	atTask = "task" // the call gives a task, and the task fails or does not end
	atHTTP = "http" // below the protocol: delays, statuses, lost answers
)

// Ways to lose a connection.
const (
	dropBefore = "before" // nothing was done
	dropAfter  = "after"  // it was done, and nobody is told
)

// Rule makes calls go wrong. Zero fields do nothing.
type Rule struct {
	ID      int    `json:"id"`
	At      string `json:"at"`
	Method  string `json:"method"` // SOAP name, CloneVM_Task; * is any (but never Login or Logout)
	Object  string `json:"object"` // pattern on the object's name or id; empty is any
	Fault   string `json:"fault"`  // API type name, TaskInProgress
	Message string `json:"message"`
	Skip    int    `json:"skip"`  // let so many pass first
	Count   int    `json:"count"` // strike so often; 0 is always
	DelayMS int    `json:"delay_ms"`
	Endless bool   `json:"endless"` // task: until cancelled or the rule is deleted
	Late    bool   `json:"late"`    // task: the work is done, then the fault is reported
	Status  int    `json:"status"`  // http: answer this instead
	Drop    string `json:"drop"`    // http: before or after
	Hits    int    `json:"hits"`    // calls it struck

	gone chan struct{} // closed when the rule is deleted
}

// Rules are the rules in force, oldest first.
type Rules struct {
	sync.Mutex
	last int
	list []*Rule
}

// Add takes a rule and returns it with its id.
func (s *Rules) Add(r Rule) (Rule, error) {
	if r.Method == "" {
		r.Method = "*"
	}
	if _, err := path.Match(r.Object, ""); err != nil {
		return r, fmt.Errorf("object: %w", err)
	}
	switch {
	case !slices.Contains([]string{atCall, atTask, atHTTP}, r.At):
		return r, fmt.Errorf("at: %s, %s or %s, not %q", atCall, atTask, atHTTP, r.At)
	case r.At != atHTTP && (r.Status != 0 || r.Drop != ""):
		return r, fmt.Errorf("status and drop belong to rules at %s", atHTTP)
	case r.At != atTask && (r.Endless || r.Late):
		return r, fmt.Errorf("endless and late belong to rules at %s", atTask)
	case r.At == atHTTP && (r.Fault != "" || r.Object != ""):
		return r, fmt.Errorf("at %s nothing is known of faults and objects", atHTTP)
	case r.Drop != "" && r.Drop != dropBefore && r.Drop != dropAfter:
		return r, fmt.Errorf("drop: %s or %s, not %q", dropBefore, dropAfter, r.Drop)
	case r.Skip < 0 || r.Count < 0 || r.DelayMS < 0:
		return r, fmt.Errorf("skip, count and delay_ms are not negative")
	case r.Fault == "" && r.DelayMS == 0 && !r.Endless && r.Status == 0 && r.Drop == "":
		return r, fmt.Errorf("the rule does nothing")
	}
	if r.Fault != "" {
		if _, ok := newFault(r.Fault, ref{}); !ok {
			return r, fmt.Errorf("fault: the API has none named %s", r.Fault)
		}
	}
	s.Lock()
	defer s.Unlock()
	s.last++
	r.ID, r.Hits, r.gone = s.last, 0, make(chan struct{})
	s.list = append(s.list, &r)
	return r, nil
}

// Strike returns the first rule that has something to say about a call, and counts it.
func (s *Rules) Strike(at, method string, names ...string) *Rule {
	s.Lock()
	defer s.Unlock()
	for _, r := range s.list {
		if r.At != at || !r.is(method) || !r.names(names) {
			continue
		}
		if r.Skip > 0 {
			r.Skip--
			continue
		}
		if r.Count > 0 && r.Hits >= r.Count {
			continue
		}
		r.Hits++
		return r
	}
	return nil
}

// List returns copies.
func (s *Rules) List() []Rule {
	s.Lock()
	defer s.Unlock()
	list := []Rule{}
	for _, r := range s.list {
		list = append(list, *r)
	}
	return list
}

// Delete forgets one rule, or all with id 0; endless tasks of theirs go on.
func (s *Rules) Delete(id int) {
	s.Lock()
	defer s.Unlock()
	s.list = slices.DeleteFunc(s.list, func(r *Rule) bool {
		if id != 0 && id != r.ID {
			return false
		}
		close(r.gone)
		return true
	})
}

// open are methods without which nobody could look at what a rule for all did.
var open = []string{"Login", "Logout", "RetrieveServiceContent"}

func (r *Rule) is(method string) bool {
	if r.Method == "*" {
		return !slices.Contains(open, method)
	}
	if r.At == atTask {
		return plainTask(r.Method) == plainTask(method)
	}
	return r.Method == method
}

func (r *Rule) names(names []string) bool {
	return r.Object == "" || slices.ContainsFunc(names, func(name string) bool {
		ok, _ := path.Match(r.Object, name)
		return ok
	})
}

// plainTask makes one name of a method's and its task's: PowerOnVM_Task and powerOn, CloneVM_Task and cloneVm.
func plainTask(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "_Task"))
	return strings.TrimSuffix(name, "vm")
}

// newFault builds a fault by API type name. Mandatory references and power states get a value, because pyVmomi cannot
// parse an empty one (TaskInProgress.task, ManagedObjectNotFound.obj, InvalidPowerState.existingState).
func newFault(name string, about ref) (types.BaseMethodFault, bool) {
	t, ok := types.TypeFunc()(name)
	if !ok || t.Kind() != reflect.Struct {
		return nil, false
	}
	v := reflect.New(t)
	for i := range t.NumField() {
		if t.Field(i).Type == reflect.TypeOf(types.VirtualMachinePowerStatePoweredOff) {
			v.Elem().Field(i).SetString(string(types.VirtualMachinePowerStatePoweredOff))
		}
		if t.Field(i).Type != reflect.TypeOf(about) {
			continue
		}
		value := about
		if t.Field(i).Name == "Task" {
			value = ref{Type: "Task", Value: "task-0"}
		}
		v.Elem().Field(i).Set(reflect.ValueOf(value))
	}
	fault, ok := v.Interface().(types.BaseMethodFault)
	return fault, ok
}
