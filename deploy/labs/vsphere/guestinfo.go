package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// ownKeys are the keys that a guest of ours may write: what it could tell through its tools.
const ownKeys = "guestinfo.tenantry."

// Guest is what a program inside a VM could see of it, and whether the VM runs.
type Guest struct {
	ID      string            `json:"id"`
	Name    string            `json:"name"`
	UUID    string            `json:"uuid"` // of its firmware
	Running bool              `json:"running"`
	Booted  string            `json:"booted"` // when it was switched on: another time is another boot
	Info    map[string]string `json:"info"`   // guestinfo.*
}

// written is a key that a guest wrote, and what the configuration had there.
type written struct{ now, before string }

// List returns the VMs that have something in guestinfo, running or not; for whoever plays their guests.
func (g *Guests) List() []Guest {
	list := []Guest{}
	for _, o := range g.reg.All("VirtualMachine") {
		vm := o.(*simulator.VirtualMachine)
		g.reg.WithLock(freshContext(g.reg), vm, func() {
			info := map[string]string{}
			for _, option := range vm.Config.ExtraConfig {
				if one := option.GetOptionValue(); strings.HasPrefix(one.Key, "guestinfo.") {
					info[one.Key] = fmt.Sprint(one.Value)
				}
			}
			if len(info) > 0 && !vm.Config.Template {
				running := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
				booted := ""
				if at := vm.Summary.Runtime.BootTime; running && at != nil {
					booted = at.Format(time.RFC3339Nano)
				}
				list = append(list, Guest{vm.Self.Value, vm.Name, vm.Config.Uuid, running, booted, info})
			}
		})
	}
	return list
}

// Set writes a key as the guest's tools do: while the VM runs, and only until it is switched off.
func (g *Guests) Set(id, key, value string) error {
	if !strings.HasPrefix(key, ownKeys) {
		return fmt.Errorf("a guest writes %s* here, not %q", ownKeys, key)
	}
	if len(value) > 64<<10 {
		return fmt.Errorf("a value has at most 64 KiB")
	}
	self := ref{Type: "VirtualMachine", Value: id}
	vm, ok := g.reg.Get(self).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("there is no VM %s", id)
	}
	ctx, err := freshContext(g.reg), error(nil)
	g.reg.WithLock(ctx, vm, func() {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			err = fmt.Errorf("VM %s is off", id)
			return
		}
		g.remember(self, key, value, extraOf(vm, key))
		ctx.Update(vm, []types.PropertyChange{{Name: "config.extraConfig", Val: withOption(vm, key, value)}})
	})
	return err
}

func (g *Guests) remember(vm ref, key, now, before string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.written[vm] == nil {
		g.written[vm] = map[string]written{}
	}
	if known, ok := g.written[vm][key]; ok && known.now == before {
		before = known.before
	}
	g.written[vm][key] = written{now, before}
}

// forgetWritten takes back what a guest wrote and nobody wrote over: the configuration on disk never had it.
func (g *Guests) forgetWritten(vm *simulator.VirtualMachine) []types.PropertyChange {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := false
	options := vm.Config.ExtraConfig
	for key, one := range g.written[vm.Self] {
		if extraOf(vm, key) == one.now {
			options, changed = setOption(options, key, one.before), true
		}
	}
	delete(g.written, vm.Self)
	if !changed {
		return nil
	}
	return []types.PropertyChange{{Name: "config.extraConfig", Val: options}}
}

func withOption(vm *simulator.VirtualMachine, key, value string) []types.BaseOptionValue {
	return setOption(vm.Config.ExtraConfig, key, value)
}

// setOption returns options with one set, or without it for an empty value.
func setOption(options []types.BaseOptionValue, key, value string) []types.BaseOptionValue {
	made := []types.BaseOptionValue{}
	for _, o := range options {
		if o.GetOptionValue().Key != key {
			made = append(made, o)
		}
	}
	if value != "" {
		made = append(made, &types.OptionValue{Key: key, Value: value})
	}
	return made
}
