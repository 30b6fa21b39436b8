package main

import (
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const lookAgain = 20 * time.Millisecond

// Tasks sees every task before it runs, whoever started it: a call, a clone with power-on, a power-on of many, a
// reset. There it puts the host's choice of GPUs before a power-on, and makes tasks fail, wait or never end.
//
// It is a listener of the registry: a task is put there before its work starts, and `Execute` is what it will do.
type Tasks struct {
	ref
	reg    *simulator.Registry
	estate *Estate
	rules  *Rules
	guests *Guests

	sync.Mutex
	moves map[ref]ref // VM → host of the last relocation asked for
}

func newTasks(reg *simulator.Registry, estate *Estate, rules *Rules, guests *Guests) *Tasks {
	t := &Tasks{ref: ref{Type: "LabTasks", Value: "1"}, reg: reg, estate: estate, rules: rules, guests: guests,
		moves: map[ref]ref{}}
	reg.AddHandler(t)
	for _, vm := range reg.All("VirtualMachine") {
		t.PutObject(nil, vm)
	}
	return t
}

// Reference names the listener.
func (t *Tasks) Reference() ref { return t.ref }

// PutObject is called for every new object.
func (t *Tasks) PutObject(_ *simulator.Context, o mo.Reference) {
	switch o := o.(type) {
	case *simulator.VirtualMachine:
		// two enum fields that the library leaves empty and pyVmomi refuses to parse
		for _, r := range []*types.VirtualMachineRuntimeInfo{&o.Runtime, &o.Summary.Runtime} {
			r.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
			r.RecordReplayState = types.VirtualMachineRecordReplayStateInactive
		}
	case *simulator.Task:
		t.intercept(o)
	}
}

// UpdateObject sees every change of an object.
func (t *Tasks) UpdateObject(_ *simulator.Context, o mo.Reference, changes []types.PropertyChange) {
	if o.Reference().Type != "VirtualMachine" {
		return
	}
	for _, c := range changes {
		if c.Name != "runtime.powerState" {
			continue
		}
		if c.Val == types.VirtualMachinePowerStatePoweredOn {
			t.guests.Boot(o.Reference())
		} else {
			t.estate.Free(o.Reference().Value, ref{})
			t.guests.Halt(o.Reference())
		}
	}
}

// RemoveObject sees what is destroyed or unregistered.
func (t *Tasks) RemoveObject(_ *simulator.Context, gone ref) {
	if gone.Type == "VirtualMachine" {
		t.estate.Free(gone.Value, ref{})
	}
}

// WillMove remembers where a VM was asked to go; its task does not say.
func (t *Tasks) WillMove(vm, host ref) {
	t.Lock()
	defer t.Unlock()
	t.moves[vm] = host
}

func (t *Tasks) movesTo(vm ref) (ref, bool) {
	t.Lock()
	defer t.Unlock()
	host, ok := t.moves[vm]
	delete(t.moves, vm)
	return host, ok
}

func (t *Tasks) intercept(task *simulator.Task) {
	if task.Info.Entity == nil {
		return
	}
	entity := *task.Info.Entity
	_, name, _ := strings.Cut(task.Info.DescriptionId, ".")
	work := task.Execute
	switch o := t.reg.Get(entity).(type) {
	case *simulator.VirtualMachine:
		switch name {
		case "powerOn":
			work = t.powerOn(o, work)
		case "relocateVm":
			work = t.housed(o, t.relocate(o, work))
		case "cloneVm":
			work = t.clone(o, work)
		}
		task.Execute = work
		t.strike(task, name, o.Name)
	case *simulator.DistributedVirtualPortgroup:
		task.Execute = func(running *simulator.Task) (types.AnyType, types.BaseMethodFault) {
			if name == "destroy" && len(o.Vm) > 0 { // as vCenter does; the library lets it go
				return nil, &types.ResourceInUse{Type: entity.Type, Name: o.Name}
			}
			return work(running)
		}
		t.strike(task, name, o.Name)
	default:
		label := ""
		if e, ok := o.(mo.Entity); ok {
			label = e.Entity().Name
		}
		t.strike(task, name, label)
	}
}

type work = func(*simulator.Task) (types.AnyType, types.BaseMethodFault)

func (t *Tasks) powerOn(vm *simulator.VirtualMachine, run work) work {
	return func(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if vm.Runtime.Host == nil || vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			return run(task) // it has its own words for that
		}
		host := *vm.Runtime.Host
		if fault := t.estate.PowerOn(vm, host); fault != nil {
			return nil, fault
		}
		result, fault := run(task)
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			t.estate.Free(vm.Self.Value, ref{})
		}
		return result, fault
	}
}

// relocate lets the other host choose before a running VM moves there.
func (t *Tasks) relocate(vm *simulator.VirtualMachine, run work) work {
	host, moves := t.movesTo(vm.Self)
	if !moves {
		return run
	}
	return func(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		running := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
		if !running || vm.Runtime.Host == nil || *vm.Runtime.Host == host {
			return run(task)
		}
		if fault := t.estate.PowerOn(vm, host); fault != nil {
			return nil, fault
		}
		result, fault := run(task)
		if fault != nil {
			t.estate.FreeOn(vm.Self.Value, host)
		} else {
			t.estate.Free(vm.Self.Value, host)
		}
		return result, fault
	}
}

// housed lets hosts and pools show a VM where it is after a relocation: the library tells the VM only.
func (t *Tasks) housed(vm *simulator.VirtualMachine, run work) work {
	return func(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		result, fault := run(task)
		ctx := freshContext(t.reg)
		for _, o := range t.reg.All("HostSystem") {
			host := o.(*simulator.HostSystem)
			t.show(ctx, host, &host.Vm, vm.Self, vm.Runtime.Host != nil && host.Self == *vm.Runtime.Host)
		}
		for _, o := range t.reg.All("ResourcePool") {
			if pool, is := o.(*simulator.ResourcePool); is {
				t.show(ctx, pool, &pool.Vm, vm.Self, vm.ResourcePool != nil && pool.Self == *vm.ResourcePool)
			}
		}
		return result, fault
	}
}

func (t *Tasks) show(ctx *simulator.Context, in mo.Reference, list *[]ref, vm ref, is bool) {
	switch shown := slices.Contains(*list, vm); {
	case is && !shown:
		t.reg.AddReference(ctx, in, list, vm)
	case !is && shown:
		t.reg.RemoveReference(ctx, in, list, vm)
	}
}

// clone gives a copy what a vCenter copies and the library leaves out.
func (t *Tasks) clone(source *simulator.VirtualMachine, run work) work {
	return func(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		result, fault := run(task)
		made, _ := result.(ref)
		if copied, ok := t.reg.Get(made).(*simulator.VirtualMachine); ok && fault == nil {
			t.reg.AtomicUpdate(freshContext(t.reg), copied, []types.PropertyChange{
				{Name: "config.firmware", Val: source.Config.Firmware},
				{Name: "config.annotation", Val: source.Config.Annotation},
			})
		}
		return result, fault
	}
}

// strike applies the rule for a task, if there is one.
//
// A task that waits must not hold its object's lock, or nobody could read the object meanwhile. The library locks
// what `info.entity` names when the task starts; so it gets a stand-in to lock, and the true name back at once.
func (t *Tasks) strike(task *simulator.Task, name, object string) {
	entity := *task.Info.Entity
	r := t.rules.Strike(atTask, name, object, entity.Value)
	if r == nil {
		return
	}
	run := task.Execute
	// of a kind that every client can parse: who reads just now sees it
	task.Info.Entity = &ref{Type: "VirtualMachine", Value: "lab-" + task.Self.Value}
	ctx := contextOf(task)
	task.Execute = func(task *simulator.Task) (result types.AnyType, fault types.BaseMethodFault) {
		t.reg.AtomicUpdate(freshContext(t.reg), task, []types.PropertyChange{{Name: "info.entity", Val: entity}})
		if !t.wait(task, r) {
			return nil, &types.RequestCanceled{}
		}
		if r.Fault != "" && !r.Late {
			return nil, t.faultOf(r, entity)
		}
		t.reg.WithLock(ctx, &entity, func() { result, fault = run(task) })
		if fault == nil && r.Fault != "" {
			return nil, t.faultOf(r, entity)
		}
		return result, fault
	}
}

// wait waits as long as a rule says; false when the task was cancelled meanwhile.
func (t *Tasks) wait(task *simulator.Task, r *Rule) bool {
	if r.DelayMS == 0 && !r.Endless {
		return true
	}
	var over <-chan time.Time // never, for an endless one
	if !r.Endless {
		over = time.After(time.Duration(r.DelayMS) * time.Millisecond)
	}
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for {
		select {
		case <-over:
			return true
		case <-r.gone:
			return true
		case <-look.C:
			ended := false
			t.reg.WithLock(freshContext(t.reg), task, func() { ended = task.Info.State == types.TaskInfoStateError })
			if ended {
				return false
			}
		}
	}
}

func (t *Tasks) faultOf(r *Rule, about ref) types.BaseMethodFault {
	fault, _ := newFault(r.Fault, about)
	if r.Message != "" {
		fault.GetMethodFault().FaultMessage = []types.LocalizableMessage{{Key: "lab", Message: r.Message}}
	}
	return fault
}

// contextOf returns the context on whose behalf a task's own work takes its locks. The library keeps it to itself;
// its version is fixed in go.mod, and a test fails when the field is not there any more.
func contextOf(task *simulator.Task) *simulator.Context {
	field := reflect.ValueOf(task).Elem().FieldByName("ctx")
	return *(**simulator.Context)(unsafe.Pointer(field.UnsafeAddr()))
}
