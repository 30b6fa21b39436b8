package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html"
	"net/url"
	"strings"
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
	for _, o := range f.world.OVFs {
		if err := addOVF(ctx, library.NewManager(client), id, o); err != nil {
			return fmt.Errorf("library item %s: %w", o.Name, err)
		}
	}
	return nil
}

// addOVF makes an item of a descriptor, as a person would upload it.
func addOVF(ctx context.Context, manager *library.Manager, in string, o OVF) error {
	item, err := manager.CreateLibraryItem(ctx, library.Item{
		Name: o.Name, Description: &o.Description, Type: library.ItemTypeOVF, LibraryID: in,
	})
	if err != nil {
		return err
	}
	session, err := manager.CreateLibraryItemUpdateSession(ctx, library.Session{LibraryItemID: item})
	if err != nil {
		return err
	}
	text := fmt.Sprintf(descriptor, o.DiskGiB, html.EscapeString(o.Name), o.GuestID)
	file, err := manager.AddLibraryItemFile(ctx, session, library.UpdateFile{Name: "image.ovf", SourceType: "PUSH"})
	if err != nil {
		return err
	}
	address, err := url.Parse(file.UploadEndpoint.URI)
	if err != nil {
		return err
	}
	upload := soap.DefaultUpload
	upload.Headers = map[string]string{"vmware-api-session-id": session}
	upload.ContentLength = int64(len(text))
	if err := manager.Client.Upload(ctx, strings.NewReader(text), address, &upload); err != nil {
		return err
	}
	return manager.CompleteLibraryItemUpdateSession(ctx, session)
}

// descriptor has a disk whose file is not there: the library would ask for one that is a real VMDK.
const descriptor = `<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References/>
  <DiskSection><Info>Disks</Info>
    <Disk ovf:capacity="%d" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="none"/>
  </DiskSection>
  <NetworkSection><Info>Networks</Info><Network ovf:name="nat"><Description>any</Description></Network></NetworkSection>
  <VirtualSystem ovf:id="vm"><Info>A virtual machine</Info><Name>%s</Name>
    <OperatingSystemSection ovf:id="94" vmw:osType="%s"><Info>Guest</Info></OperatingSystemSection>
    <VirtualHardwareSection><Info>Hardware</Info>
      <System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>vm</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-21</vssd:VirtualSystemType></System>
      <Item><rasd:ElementName>CPUs</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:ElementName>Memory</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:ElementName>SCSI Controller</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>disk0</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>nat</rasd:Connection><rasd:ElementName>ethernet0</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType></Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
`

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
