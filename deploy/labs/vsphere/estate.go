package main

import (
	"fmt"
	"log"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type ref = types.ManagedObjectReference

// Estate is the truth about every GPU: which windows are held by which VM. Hosts show it in graphicsInfo.
type Estate struct {
	sync.Mutex
	reg   *simulator.Registry
	hosts map[ref]*gpuHost
}

type gpuHost struct {
	Name    string `json:"name"`
	GPUs    []GPU  `json:"gpus"`
	chooser Chooser
	manager *graphicsManager
}

// graphicsManager is the HostGraphicsManager that the simulator library lacks.
type graphicsManager struct {
	mo.HostGraphicsManager
	devices  []types.VirtualMachineVgpuDeviceInfo
	profiles []types.VirtualMachineVgpuProfileInfo
}

func (g *graphicsManager) RefreshGraphicsManager(*types.RefreshGraphicsManager) soap.HasFault {
	return &methods.RefreshGraphicsManagerBody{Res: &types.RefreshGraphicsManagerResponse{}}
}

func (g *graphicsManager) RetrieveVgpuDeviceInfo(*types.RetrieveVgpuDeviceInfo) soap.HasFault {
	return &methods.RetrieveVgpuDeviceInfoBody{Res: &types.RetrieveVgpuDeviceInfoResponse{Returnval: g.devices}}
}

func (g *graphicsManager) RetrieveVgpuProfileInfo(*types.RetrieveVgpuProfileInfo) soap.HasFault {
	return &methods.RetrieveVgpuProfileInfoBody{Res: &types.RetrieveVgpuProfileInfoResponse{Returnval: g.profiles}}
}

// newEstate puts GPUs into the hosts of a world. The first entry that has a host's name is the one.
func newEstate(reg *simulator.Registry, w *World) *Estate {
	e := &Estate{reg: reg, hosts: map[ref]*gpuHost{}}
	hosts := reg.All("HostSystem")
	slices.SortFunc(hosts, func(a, b mo.Entity) int { return compareNatural(a.Entity().Name, b.Entity().Name) })
	for i, entity := range hosts {
		h := entity.(*simulator.HostSystem)
		size(h, w)
		if i < len(w.HostNames) {
			h.Name, h.Summary.Config.Name = w.HostNames[i], w.HostNames[i]
		}
		at := slices.IndexFunc(w.GPUHosts, func(g GPUHosts) bool { return g.has(h.Name) })
		if at < 0 {
			continue
		}
		given := w.GPUHosts[at]
		policy := given.Policy
		if policy == "" {
			policy = w.Policy
		}
		made := &gpuHost{Name: h.Name, chooser: Chooser{policy, rand.New(rand.NewPCG(w.Seed, uint64(i)))}}
		for _, g := range given.GPUs {
			g.Held = []Window{}
			made.GPUs = append(made.GPUs, g)
		}
		e.seed(h, made)
		e.hosts[h.Self] = made
	}
	return e
}

// size gives a host the hardware of the world: the library's hosts have 2 threads and 4 GiB, which no GPU VM fits in.
func size(h *simulator.HostSystem, w *World) {
	if w.HostVCPU == 0 || w.HostMemory == 0 {
		return // a world made in a test of this program
	}
	h.Summary.Hardware.NumCpuThreads, h.Summary.Hardware.NumCpuCores = w.HostVCPU, w.HostVCPU/2
	h.Summary.Hardware.MemorySize = w.HostMemory << 30
	h.Hardware.CpuInfo.NumCpuThreads, h.Hardware.CpuInfo.NumCpuCores = w.HostVCPU, w.HostVCPU/2
	h.Hardware.MemorySize = w.HostMemory << 30
}

// seed writes what a host says about its GPUs and that does not change later.
func (e *Estate) seed(h *simulator.HostSystem, made *gpuHost) {
	m := &graphicsManager{}
	said := map[string]bool{}
	shared := false
	for i := range made.GPUs {
		g := &made.GPUs[i]
		label := g.Label
		h.Config.PciPassthruInfo = append(h.Config.PciPassthruInfo, &types.HostPciPassthruInfo{
			Id: g.PciID, DependentDevice: g.PciID, PassthruCapable: true, PassthruEnabled: g.Passthrough,
			PassthruActive: g.Passthrough, HardwareLabel: label,
		})
		h.Hardware.PciDevice = append(h.Hardware.PciDevice, types.HostPciDevice{
			Id: g.PciID, ClassId: 0x302, VendorId: int16(g.VendorID), DeviceId: int16(g.DeviceID),
			VendorName: "NVIDIA Corporation", DeviceName: g.Name,
		})
		if g.Passthrough {
			continue
		}
		shared = true
		kind := int64(g.VendorID)<<32 | int64(g.DeviceID)
		device := types.VirtualMachineVgpuDeviceInfo{
			DeviceName: g.Name, DeviceVendorId: kind, MaxFbSizeInGib: g.MemoryKiB >> 20, ComputeProfileCapable: true,
		}
		for _, t := range g.Types {
			device.MigCapable = device.MigCapable || t.Sharing == sharingMig
			device.TimeSlicedCapable = device.TimeSlicedCapable || t.Sharing == sharingTimeSliced
			if said[t.Name] {
				continue
			}
			said[t.Name] = true
			m.SharedPassthruGpuTypes = append(m.SharedPassthruGpuTypes, t.Name)
			m.SharedGpuCapabilities = append(m.SharedGpuCapabilities, types.HostSharedGpuCapabilities{
				Vgpu: t.Name, DiskSnapshotSupported: true, MemorySnapshotSupported: true, SuspendSupported: true,
				MigrateSupported: true,
			})
			m.profiles = append(m.profiles, types.VirtualMachineVgpuProfileInfo{
				ProfileName: t.Name, DeviceVendorId: kind, FbSizeInGib: t.FramebufferGiB, ProfileSharing: t.Sharing,
				ProfileClass: "compute",
			})
		}
		if !said[g.Name] {
			said[g.Name] = true
			m.devices = append(m.devices, device)
		}
	}
	config := &types.HostGraphicsConfig{
		HostDefaultGraphicsType: "shared", SharedPassthruAssignmentPolicy: "performance",
	}
	if shared {
		config.HostDefaultGraphicsType = "sharedDirect"
	}
	m.GraphicsConfig = config
	m.Self = ref{Type: "HostGraphicsManager", Value: "graphicsManager-" + h.Self.Value}
	e.reg.Put(m)
	made.manager = m
	h.ConfigManager.GraphicsManager = types.NewReference(m.Self)
	h.Config.SharedPassthruGpuTypes, h.Config.SharedGpuCapabilities = m.SharedPassthruGpuTypes, m.SharedGpuCapabilities
	h.Config.GraphicsConfig = config
	m.GraphicsInfo = made.info()
	h.Config.GraphicsInfo = m.GraphicsInfo
}

// info is graphicsInfo as it is now.
func (h *gpuHost) info() []types.HostGraphicsInfo {
	list := []types.HostGraphicsInfo{}
	for i := range h.GPUs {
		g := &h.GPUs[i]
		one := types.HostGraphicsInfo{
			DeviceName: g.Name, VendorName: "NVIDIA Corporation", PciId: g.PciID, GraphicsType: "sharedDirect",
			VgpuMode: g.vgpuMode(), MemorySizeInKB: g.MemoryKiB,
		}
		if g.Passthrough {
			one.GraphicsType, one.VgpuMode = "direct", "none"
		}
		for _, w := range g.Held {
			vm := ref{Type: "VirtualMachine", Value: w.VM}
			if !slices.Contains(one.Vm, vm) {
				one.Vm = append(one.Vm, vm)
			}
		}
		list = append(list, one)
	}
	return list
}

// PowerOn lets the host choose for a VM that is about to run there. A nil fault means that it holds what it needs.
func (e *Estate) PowerOn(vm *simulator.VirtualMachine, host ref) types.BaseMethodFault {
	wants, fault := wantsOf(vm)
	if fault != nil || len(wants) == 0 {
		return fault
	}
	e.Lock()
	defer e.Unlock()
	h := e.hosts[host]
	if h == nil {
		return insufficient()
	}
	e.drop(h, vm.Self.Value) // a repeated power-on of a VM that holds something from before
	chosen, ok := h.chooser.Choose(h.GPUs, vm.Self.Value, wants)
	if !ok {
		return insufficient()
	}
	for _, one := range chosen {
		g := &h.GPUs[one.gpu]
		g.Held = append(g.Held, one.window)
	}
	e.show(host)
	return nil
}

// Free takes a VM off every host but `but`.
func (e *Estate) Free(vm string, but ref) {
	e.Lock()
	defer e.Unlock()
	for self, h := range e.hosts {
		if self != but && e.drop(h, vm) {
			e.show(self)
		}
	}
}

// FreeOn takes a VM off one host.
func (e *Estate) FreeOn(vm string, host ref) {
	e.Lock()
	defer e.Unlock()
	if h := e.hosts[host]; h != nil && e.drop(h, vm) {
		e.show(host)
	}
}

func (e *Estate) drop(h *gpuHost, vm string) bool {
	had := false
	for i := range h.GPUs {
		g := &h.GPUs[i]
		before := len(g.Held)
		g.Held = slices.DeleteFunc(g.Held, func(w Window) bool { return w.VM == vm })
		had = had || len(g.Held) != before
	}
	return had
}

// show writes graphicsInfo anew. The estate's lock is held, so that two changes are shown in their order; nobody
// who holds a host's lock asks for the estate's.
func (e *Estate) show(host ref) {
	h := e.hosts[host]
	info := h.info()
	ctx := freshContext(e.reg)
	set := func(o mo.Reference, name string) {
		e.reg.AtomicUpdate(ctx, o, []types.PropertyChange{{Name: name, Val: info}})
	}
	if o, ok := e.reg.Get(host).(*simulator.HostSystem); ok {
		set(o, "config.graphicsInfo")
	}
	set(h.manager, "graphicsInfo")
}

// Truth is what the control address tells.
func (e *Estate) Truth() []gpuHost {
	e.Lock()
	defer e.Unlock()
	list := []gpuHost{}
	for _, h := range e.hosts {
		one := gpuHost{Name: h.Name, GPUs: slices.Clone(h.GPUs)}
		for i := range one.GPUs {
			one.GPUs[i].Held = slices.Clone(one.GPUs[i].Held)
			one.GPUs[i].FixedMode = one.GPUs[i].Mode()
		}
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b gpuHost) int { return compareNatural(a.Name, b.Name) })
	return list
}

// SetPolicy changes how hosts choose from now on.
func (e *Estate) SetPolicy(policy string) error {
	if !slices.Contains([]string{policyFirst, policySpread, policyAdversarial}, policy) {
		return fmt.Errorf("no policy %q", policy)
	}
	e.Lock()
	defer e.Unlock()
	for _, h := range e.hosts {
		h.chooser.Policy = policy
	}
	return nil
}

// wantsOf reads a VM's GPU devices.
func wantsOf(vm *simulator.VirtualMachine) ([]Want, types.BaseMethodFault) {
	var wants []Want
	for _, d := range vm.Config.Hardware.Device {
		device, ok := d.(*types.VirtualPCIPassthrough)
		if !ok {
			continue
		}
		switch b := device.Backing.(type) {
		case *types.VirtualPCIPassthroughVmiopBackingInfo:
			wants = append(wants, Want{Type: b.Vgpu})
		case *types.VirtualPCIPassthroughDeviceBackingInfo:
			wants = append(wants, Want{Passthrough: true, PciID: b.Id})
		case *types.VirtualPCIPassthroughDynamicBackingInfo:
			w := Want{Passthrough: true, DynamicPassthrough: true, Label: b.CustomLabel}
			for _, a := range b.AllowedDevice {
				w.Allowed = append(w.Allowed, [2]int{int(a.VendorId), int(a.DeviceId)})
			}
			wants = append(wants, w)
		default:
			log.Printf("%s: backing %T is not simulated", vm.Name, b)
			return nil, &types.GenericVmConfigFault{Reason: "passthrough backing is not simulated"}
		}
	}
	return wants, nil
}

func insufficient() types.BaseMethodFault { return &types.InsufficientGraphicsResourcesFault{} }

// freshContext is a locking context of our own: locks are held on behalf of one.
func freshContext(reg *simulator.Registry) *simulator.Context {
	ctx := simulator.NewContext()
	ctx.Map = reg
	return ctx
}

// compareNatural puts H2 before H10.
func compareNatural(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}
