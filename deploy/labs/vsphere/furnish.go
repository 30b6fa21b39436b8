package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"sync"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vapi/library"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/vcenter"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Names of the lab's own folders.
const (
	foreignFolder = "others"
	libraryFolder = "content-library"

	hardwareVersion = "vmx-21" // of templates; the library's is of 2016
)

// Furnisher makes what is in the vCenter beside hosts, through the API as an administrator would.
type Furnisher struct {
	client *vim25.Client
	world  *World

	sync.Mutex // one foreign VM is made at a time: the folder is made by the first
}

func newFurnisher(ctx context.Context, svc *simulator.Service, w *World) (*Furnisher, error) {
	client, err := vim25.NewClient(ctx, svc)
	return &Furnisher{client: client, world: w}, err
}

func (f *Furnisher) finder(ctx context.Context) (*find.Finder, *object.Datacenter, error) {
	finder := find.NewFinder(f.client)
	all, err := finder.DatacenterList(ctx, "*")
	if err != nil {
		return nil, nil, err
	}
	finder.SetDatacenter(all[0])
	return finder, all[0], nil
}

// Templates makes the world's templates of the VMs that the library made.
func (f *Furnisher) Templates(ctx context.Context) error {
	finder, _, err := f.finder(ctx)
	if err != nil {
		return err
	}
	vms, err := finder.VirtualMachineList(ctx, "*")
	var none *find.NotFoundError
	if errors.As(err, &none) && len(f.world.Templates) == 0 {
		return nil
	} else if err != nil {
		return err
	}
	for i, vm := range vms {
		if i >= len(f.world.Templates) {
			if err := done(ctx)(vm.Destroy(ctx)); err != nil {
				return err
			}
			continue
		}
		t := f.world.Templates[i]
		spec := types.VirtualMachineConfigSpec{
			Name: t.Name, Annotation: t.Annotation, Firmware: t.Firmware, GuestId: t.GuestID, Version: hardwareVersion,
		}
		if err := done(ctx)(vm.Reconfigure(ctx, spec)); err != nil {
			return fmt.Errorf("template %s: %w", t.Name, err)
		}
		if err := vm.MarkAsTemplate(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Library makes the content library with one item per template; `address` is the server's own.
func (f *Furnisher) Library(ctx context.Context, address *url.URL, config *tls.Config) error {
	if f.world.Library == "" {
		return nil
	}
	finder, dc, err := f.finder(ctx)
	if err != nil {
		return err
	}
	store, err := finder.DatastoreList(ctx, "*")
	if err != nil {
		return err
	}
	pools, err := finder.ResourcePoolList(ctx, "*/Resources")
	if err != nil {
		return err
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		return err
	}
	items, err := folders.VmFolder.CreateFolder(ctx, libraryFolder)
	if err != nil {
		return err
	}
	raw := soap.NewClient(address, false)
	raw.DefaultTransport().TLSClientConfig = config
	over, err := vim25.NewClient(ctx, raw)
	if err != nil {
		return err
	}
	client := rest.NewClient(over)
	if err := client.Login(ctx, address.User); err != nil {
		return err
	}
	defer client.Logout(ctx)
	id, err := library.NewManager(client).CreateLibrary(ctx, library.Library{
		Name: f.world.Library, Type: "LOCAL",
		Storage: []library.StorageBacking{{DatastoreID: store[0].Reference().Value, Type: "DATASTORE"}},
	})
	if err != nil {
		return err
	}
	for _, t := range f.world.Templates {
		source, err := finder.VirtualMachine(ctx, t.Name)
		if err != nil {
			return err
		}
		_, err = vcenter.NewManager(client).CreateTemplate(ctx, vcenter.Template{
			Name: t.Name, Library: id, SourceVM: source.Reference().Value,
			Placement: &vcenter.Placement{
				Folder: items.Reference().Value, ResourcePool: pools[0].Reference().Value,
			},
		})
		if err != nil {
			return fmt.Errorf("library item %s: %w", t.Name, err)
		}
	}
	return nil
}

// Foreign makes a VM that is not ours, on a host by name, and powers it on if asked to.
func (f *Furnisher) Foreign(ctx context.Context, given ForeignVM) error {
	f.Lock()
	defer f.Unlock()
	finder, dc, err := f.finder(ctx)
	if err != nil {
		return err
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		return err
	}
	folder, err := finder.Folder(ctx, dc.InventoryPath+"/vm/"+foreignFolder)
	if err != nil {
		if folder, err = folders.VmFolder.CreateFolder(ctx, foreignFolder); err != nil {
			return err
		}
	}
	host, err := finder.HostSystem(ctx, "*/"+given.Host)
	if err != nil {
		return err
	}
	pool, err := host.ResourcePool(ctx)
	if err != nil {
		return err
	}
	stores, err := finder.DatastoreList(ctx, "*")
	if err != nil {
		return err
	}
	spec := types.VirtualMachineConfigSpec{
		Name: given.Name, NumCPUs: 4, MemoryMB: 16384, GuestId: "otherLinux64Guest",
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + stores[0].Name() + "]"},
	}
	for i, name := range given.Types {
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd,
			Device: &types.VirtualPCIPassthrough{VirtualDevice: types.VirtualDevice{
				Key: int32(-100 - i), Backing: &types.VirtualPCIPassthroughVmiopBackingInfo{Vgpu: name},
			}},
		})
	}
	task, err := folder.CreateVM(ctx, spec, pool, host)
	if err != nil {
		return err
	}
	made, err := task.WaitForResult(ctx)
	if err != nil || !given.PowerOn {
		return err
	}
	return done(ctx)(object.NewVirtualMachine(f.client, made.Result.(ref)).PowerOn(ctx))
}

// RemoveForeign powers a VM of others off and destroys it.
func (f *Furnisher) RemoveForeign(ctx context.Context, name string) error {
	finder, dc, err := f.finder(ctx)
	if err != nil {
		return err
	}
	vm, err := finder.VirtualMachine(ctx, dc.InventoryPath+"/vm/"+foreignFolder+"/"+name)
	if err != nil {
		return err
	}
	state, err := vm.PowerState(ctx)
	if err != nil {
		return err
	}
	if state != types.VirtualMachinePowerStatePoweredOff {
		if err := done(ctx)(vm.PowerOff(ctx)); err != nil {
			return err
		}
	}
	return done(ctx)(vm.Destroy(ctx))
}

// Roles makes roles that may only look, for tests of what a named role lacks.
func (f *Furnisher) Roles(ctx context.Context) error {
	manager := object.NewAuthorizationManager(f.client)
	for _, name := range f.world.Roles {
		if _, err := manager.AddRole(ctx, name, []string{"System.Anonymous", "System.Read", "System.View"}); err != nil {
			return err
		}
	}
	return nil
}

// done waits for a task that was just started.
func done(ctx context.Context) func(*object.Task, error) error {
	return func(task *object.Task, err error) error {
		if err != nil {
			return err
		}
		return task.Wait(ctx)
	}
}
