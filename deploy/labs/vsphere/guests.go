package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// redacted is what cloud-init's VMware datasource leaves in a key that it was told to redact.
const redacted = "---"

// Guests plays what a vCenter sees of a booted guest: tools, a host name, an address, and what cloud-init's VMware
// datasource writes into guestinfo. Of what runs in it, only its SSH server is played (ssh.go).
type Guests struct {
	reg  *simulator.Registry
	ssh  *SSHServers
	boot atomic.Bool // whether VMs that are powered on from now on boot

	mu      sync.Mutex
	written map[ref]map[string]written // by guests through their tools
}

// Boot plays the boot of a VM that has just been powered on.
func (g *Guests) Boot(vm ref) {
	if g.boot.Load() {
		go g.change(vm, types.VirtualMachinePowerStatePoweredOn, g.ssh.With(booted, g.remember))
	}
}

// Halt takes away what a running guest shows.
func (g *Guests) Halt(vm ref) {
	go g.ssh.Stop(vm)
	go g.change(vm, "", g.halted)
}

// change updates a VM under its lock, if it is still in the power state that was seen ("" is any but running).
func (g *Guests) change(
	self ref, state types.VirtualMachinePowerState, what func(*simulator.VirtualMachine) []types.PropertyChange,
) {
	vm, ok := g.reg.Get(self).(*simulator.VirtualMachine)
	if !ok {
		return
	}
	ctx := freshContext(g.reg)
	g.reg.WithLock(ctx, vm, func() {
		runs := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
		if g.reg.Get(self) != nil && runs == (state == types.VirtualMachinePowerStatePoweredOn) {
			ctx.Update(vm, what(vm))
		}
	})
}

func booted(vm *simulator.VirtualMachine) []types.PropertyChange {
	name, redact := metadataOf(vm)
	if name == "" {
		name = vm.Name
	}
	nics := []types.GuestNicInfo{}
	first := ""
	for i, d := range vm.Config.Hardware.Device {
		card, ok := d.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		c := card.GetVirtualEthernetCard()
		address := addressOf(vm.Self, i)
		if first == "" {
			first = address
		}
		nics = append(nics, types.GuestNicInfo{
			MacAddress: c.MacAddress, Connected: true, DeviceConfigId: c.Key, IpAddress: []string{address},
			IpConfig: &types.NetIpConfigInfo{IpAddress: []types.NetIpConfigInfoIpAddress{
				{IpAddress: address, PrefixLength: 16, State: "preferred"},
			}},
		})
	}
	extra := slices.Clone(vm.Config.ExtraConfig)
	set := func(key, value string) {
		extra = slices.DeleteFunc(extra, func(o types.BaseOptionValue) bool { return o.GetOptionValue().Key == key })
		extra = append(extra, &types.OptionValue{Key: key, Value: value})
	}
	set("guestinfo.local-ipv4", first)
	set("guestinfo.local-hostname", name)
	for _, key := range redact {
		if extraOf(vm, "guestinfo."+key) != "" {
			set("guestinfo."+key, redacted)
			set("guestinfo."+key+".encoding", "")
		}
	}
	return append(tools("guestToolsRunning", "toolsOk", "running", first, name),
		types.PropertyChange{Name: "guest.net", Val: nics}, types.PropertyChange{Name: "config.extraConfig", Val: extra})
}

func (g *Guests) halted(vm *simulator.VirtualMachine) []types.PropertyChange {
	changes := append(tools("guestToolsNotRunning", "toolsNotRunning", "notRunning", "", ""),
		types.PropertyChange{Name: "guest.net", Val: []types.GuestNicInfo{}})
	return append(changes, g.forgetWritten(vm)...)
}

func tools(running, status, state, address, name string) []types.PropertyChange {
	return []types.PropertyChange{
		{Name: "guest.toolsRunningStatus", Val: running},
		{Name: "guest.toolsStatus", Val: types.VirtualMachineToolsStatus(status)},
		{Name: "guest.guestState", Val: state},
		{Name: "guest.ipAddress", Val: address},
		{Name: "guest.hostName", Val: name},
		{Name: "summary.guest.ipAddress", Val: address},
		{Name: "summary.guest.hostName", Val: name},
	}
}

// metadataOf reads the host name and the keys to redact from guestinfo.metadata, which we expect in JSON.
func metadataOf(vm *simulator.VirtualMachine) (name string, redact []string) {
	text, err := unpack(extraOf(vm, "guestinfo.metadata"), extraOf(vm, "guestinfo.metadata.encoding"))
	var read struct {
		Name   string   `json:"local-hostname"`
		Redact []string `json:"redact"`
	}
	if err != nil || json.Unmarshal(text, &read) != nil {
		return "", nil
	}
	return read.Name, read.Redact
}

func extraOf(vm *simulator.VirtualMachine, key string) string {
	for _, o := range vm.Config.ExtraConfig {
		if o.GetOptionValue().Key == key {
			return fmt.Sprint(o.GetOptionValue().Value)
		}
	}
	return ""
}

// unpack decodes a guestinfo value as the datasource does.
func unpack(value, encoding string) ([]byte, error) {
	if encoding == "" {
		return []byte(value), nil
	}
	raw, err := base64.StdEncoding.DecodeString(value)
	if err != nil || !strings.HasPrefix(encoding, "gz") {
		return raw, err
	}
	reader, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(reader, 1<<20))
}

// addressOf gives each card of each VM an address of its own in 10.96.0.0/12.
func addressOf(vm ref, device int) string {
	_, digits, _ := strings.Cut(vm.Value, "-")
	n, _ := strconv.Atoi(digits)
	return fmt.Sprintf("10.%d.%d.%d", 96+device%16, n>>8&255, n&255)
}
