package main

import (
	"context"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func set(t *testing.T, vm *object.VirtualMachine, key, value string) {
	t.Helper()
	spec := types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: key, Value: value}}}
	task, err := vm.Reconfigure(context.Background(), spec)
	if err == nil {
		err = task.Wait(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func guestOf(lab *Lab, name string) (Guest, bool) {
	for _, one := range lab.guests.List() {
		if one.Name == name {
			return one, true
		}
	}
	return Guest{}, false
}

func TestAGuestReadsAndWritesItsKeysWhileItRunsAndLosesWhatItWroteWhenItIsOff(t *testing.T) {
	lab, _, f := started(t, testWorld())
	ctx := context.Background()
	vm, err := gpuVM(t, f, "guest", "DC0_C0_H0", "nvidia_h100xm-1-10c", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, listed := guestOf(lab, "guest"); listed {
		t.Error("a VM without guestinfo is listed")
	}
	set(t, vm, "guestinfo.tenantry.enrolment", "token")
	id := vm.Reference().Value
	if lab.guests.Set(id, "guestinfo.tenantry.gateway", "early") == nil {
		t.Error("a guest that is off writes")
	}
	task, _ := vm.PowerOn(ctx)
	if err := task.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"guestinfo.tenantry.enrolment": "---", "guestinfo.tenantry.gateway": "first"} {
		if err := lab.guests.Set(id, key, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := lab.guests.Set(id, "guestinfo.tenantry.gateway", "second"); err != nil {
		t.Fatal(err)
	}
	if lab.guests.Set(id, "tenantry.want", "x") == nil || lab.guests.Set("vm-none", "guestinfo.tenantry.a", "x") == nil {
		t.Error("a guest writes what is not its own")
	}
	seen, _ := guestOf(lab, "guest")
	vmConfig := lab.reg.Get(vm.Reference()).(*simulator.VirtualMachine).Config
	if !seen.Running || seen.UUID != vmConfig.Uuid || seen.Info["guestinfo.tenantry.gateway"] != "second" ||
		seen.Info["guestinfo.tenantry.enrolment"] != "---" {
		t.Errorf("seen %+v", seen)
	}

	first := seen.Booted
	task, _ = vm.PowerOff(ctx)
	if err := task.Wait(ctx); err != nil {
		t.Fatal(err)
	}

	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		seen, _ = guestOf(lab, "guest")
		if _, there := seen.Info["guestinfo.tenantry.gateway"]; !there || time.Now().After(end) {
			break
		}
	}
	if _, there := seen.Info["guestinfo.tenantry.gateway"]; there || seen.Running ||
		seen.Info["guestinfo.tenantry.enrolment"] != "token" {
		t.Errorf("off: %+v", seen)
	}
	if seen.Booted != "" {
		t.Errorf("it is off and has booted at %s", seen.Booted)
	}
	task, _ = vm.PowerOn(ctx)
	if err := task.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if again, _ := guestOf(lab, "guest"); again.Booted == "" || again.Booted == first {
		t.Errorf("booted at %q, then at %q", first, again.Booted)
	}
}

func TestWhatWasWrittenOverAGuestsWordStays(t *testing.T) {
	lab, _, f := started(t, testWorld())
	ctx := context.Background()
	vm, err := gpuVM(t, f, "guest", "DC0_C0_H0", "nvidia_h100xm-1-10c", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.guests.Set(vm.Reference().Value, "guestinfo.tenantry.enrolment", "---"); err != nil {
		t.Fatal(err)
	}
	set(t, vm, "guestinfo.tenantry.enrolment", "a fresh token")

	task, _ := vm.PowerOff(ctx)
	if err := task.Wait(ctx); err != nil {
		t.Fatal(err)
	}

	time.Sleep(100 * time.Millisecond)
	if seen, _ := guestOf(lab, "guest"); seen.Info["guestinfo.tenantry.enrolment"] != "a fresh token" {
		t.Errorf("off: %+v", seen)
	}
}
