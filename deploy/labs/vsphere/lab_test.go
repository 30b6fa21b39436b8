package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func testWorld() *World {
	return &World{
		APIVersion: "8.0.3.0", Policy: policyFirst, Datacenters: 1, Clusters: 1, Hosts: 2, Datastores: 1, Portgroups: 1,
		GPUHosts:  []GPUHosts{{Hosts: []string{"DC0_C0_H0"}, GPUs: []GPU{h100()}}},
		Templates: []Template{{Name: "ubuntu", Firmware: "efi"}}, Library: "images", Guests: true,
	}
}

func started(t *testing.T, w *World) (*Lab, *govmomi.Client, *find.Finder) {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	shape := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, _ := x509.CreateCertificate(rand.Reader, shape, shape, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	lab, err := start(w, Options{Listen: "127.0.0.1:0", Authority: pool,
		Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		Logins:      []Login{{"admin", "secret"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lab.Close)
	address := *lab.server.URL
	address.User = url.UserPassword("admin", "secret")
	client, err := govmomi.NewClient(context.Background(), &address, true)
	if err != nil {
		t.Fatal(err)
	}
	finder := find.NewFinder(client.Client)
	dc, err := finder.Datacenter(context.Background(), "DC0")
	if err != nil {
		t.Fatal(err)
	}
	finder.SetDatacenter(dc)
	return lab, client, finder
}

// gpuVM clones the template onto a host with one vGPU, powered on in the same call if `on`.
func gpuVM(t *testing.T, f *find.Finder, name, host, kind string, on bool) (*object.VirtualMachine, error) {
	t.Helper()
	ctx := context.Background()
	template, err := f.VirtualMachine(ctx, "/DC0/vm/ubuntu")
	if err != nil {
		t.Fatal(err)
	}
	at, _ := f.HostSystem(ctx, "*/"+host)
	pool, _ := at.ResourcePool(ctx)
	folder, _ := f.DefaultFolder(ctx)
	place := types.VirtualMachineRelocateSpec{Host: types.NewReference(at.Reference()), Pool: types.NewReference(pool.Reference())}
	device := &types.VirtualPCIPassthrough{VirtualDevice: types.VirtualDevice{Key: -100,
		Backing: &types.VirtualPCIPassthroughVmiopBackingInfo{Vgpu: kind}}}
	task, err := template.Clone(ctx, folder, name, types.VirtualMachineCloneSpec{Location: place, PowerOn: on,
		Config: &types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
			&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: device}}}})
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		return nil, err
	}
	return object.NewVirtualMachine(template.Client(), info.Result.(ref)), nil
}

func TestNobodyEntersWithoutThePassword(t *testing.T) {
	lab, client, _ := started(t, testWorld())
	ctx := context.Background()
	wrong := *lab.server.URL
	wrong.User = url.UserPassword("admin", "wrong")
	_, err := govmomi.NewClient(ctx, &wrong, true)
	if !fault.Is(err, &types.InvalidLogin{}) {
		t.Errorf("a wrong password: %v", err)
	}
	wrong.User = nil
	stranger, err := govmomi.NewClient(ctx, &wrong, true)
	if err != nil {
		t.Fatal(err)
	}
	var root mo.Folder
	err = property.DefaultCollector(stranger.Client).RetrieveOne(ctx, client.ServiceContent.RootFolder, nil, &root)
	if !fault.Is(err, &types.NotAuthenticated{}) {
		t.Errorf("a stranger reads: %v", err)
	}
}

func TestEveryWayToPowerOnAsksTheHost(t *testing.T) {
	lab, _, f := started(t, testWorld())
	ctx := context.Background()
	full := "nvidia_h100xm-7-80c"
	first, err := gpuVM(t, f, "first", "DC0_C0_H0", full, true)
	if err != nil {
		t.Fatal(err)
	}
	if held := lab.estate.Truth()[0].GPUs[0].Held; len(held) != 1 || held[0].VM != first.Reference().Value {
		t.Errorf("held: %v", held)
	}
	if _, err := gpuVM(t, f, "second", "DC0_C0_H0", full, true); !fault.Is(err, &types.InsufficientGraphicsResourcesFault{}) {
		t.Errorf("a clone that powers on: %v", err)
	}
	second, _ := f.VirtualMachine(ctx, "/DC0/vm/second")
	if err := done(ctx)(second.PowerOn(ctx)); !fault.Is(err, &types.InsufficientGraphicsResourcesFault{}) {
		t.Errorf("a power-on: %v", err)
	}
	dc, _ := f.Datacenter(ctx, "DC0")
	_ = done(ctx)(dc.PowerOnVM(ctx, []ref{second.Reference()}))
	if state, _ := second.PowerState(ctx); state != types.VirtualMachinePowerStatePoweredOff {
		t.Errorf("a power-on of many: %s", state)
	}
	other, err := gpuVM(t, f, "elsewhere", "DC0_C0_H1", full, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := done(ctx)(other.PowerOn(ctx)); !fault.Is(err, &types.InsufficientGraphicsResourcesFault{}) {
		t.Errorf("on a host without GPUs: %v", err)
	}

	if err := done(ctx)(first.PowerOff(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := done(ctx)(second.PowerOn(ctx)); err != nil {
		t.Errorf("after the first is off: %v", err)
	}
	host := lab.reg.Get(hostNamed(lab, "DC0_C0_H0")).(*simulator.HostSystem)
	if info := host.Config.GraphicsInfo[0]; len(info.Vm) != 1 || info.Vm[0] != second.Reference() || info.VgpuMode != "multiInstanceGpu" {
		t.Errorf("the host shows %+v", info)
	}
}

func hostNamed(l *Lab, name string) ref {
	for _, h := range l.reg.All("HostSystem") {
		if h.Entity().Name == name {
			return h.Reference()
		}
	}
	return ref{}
}

func TestATaskFailsLateOrNeverEndsAsARuleSays(t *testing.T) {
	lab, _, f := started(t, testWorld())
	ctx := context.Background()
	rule := func(r Rule) {
		t.Helper()
		if _, err := lab.rules.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	template, _ := f.VirtualMachine(ctx, "/DC0/vm/ubuntu")
	name := "renamed"
	rule(Rule{At: atTask, Method: "Rename_Task", Fault: "TaskInProgress", Count: 1})
	if err := done(ctx)(template.Rename(ctx, name)); !fault.Is(err, &types.TaskInProgress{}) {
		t.Errorf("the first: %v", err)
	}
	rule(Rule{At: atTask, Method: "Rename_Task", Fault: "HostCommunication", Late: true, Count: 1})
	if err := done(ctx)(template.Rename(ctx, name)); !fault.Is(err, &types.HostCommunication{}) {
		t.Errorf("the late one: %v", err)
	}
	if is, _ := template.ObjectName(ctx); is != name {
		t.Errorf("late means done, and it is %s", is)
	}

	rule(Rule{At: atTask, Method: "Rename_Task", Endless: true, Count: 1})
	task, err := template.Rename(ctx, "never")
	if err != nil {
		t.Fatal(err)
	}
	if is, _ := template.ObjectName(ctx); is != name { // others can look meanwhile
		t.Errorf("it is %s", is)
	}
	var shown mo.Task
	_ = property.DefaultCollector(template.Client()).RetrieveOne(ctx, task.Reference(), []string{"info"}, &shown)
	if shown.Info.State != types.TaskInfoStateRunning || *shown.Info.Entity != template.Reference() {
		t.Errorf("the task shows %s of %v", shown.Info.State, shown.Info.Entity)
	}
	if err := task.Cancel(ctx); err != nil {
		t.Fatal(err)
	}
	if err := task.Wait(ctx); !fault.Is(err, &types.RequestCanceled{}) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestALostAnswerIsOfWorkThatWasDone(t *testing.T) {
	lab, _, f := started(t, testWorld())
	ctx := context.Background()
	folders, _ := f.DefaultFolder(ctx)
	for _, when := range []string{dropBefore, dropAfter} {
		if _, err := lab.rules.Add(Rule{At: atHTTP, Method: "CreateFolder", Drop: when, Count: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := folders.CreateFolder(ctx, when); err == nil || soap.IsSoapFault(err) {
			t.Errorf("%s: %v", when, err)
		}
		_, err := f.Folder(ctx, "/DC0/vm/"+when)
		if (err == nil) != (when == dropAfter) {
			t.Errorf("%s: %v", when, err)
		}
	}
}

func TestEndedSessionsAreUnknown(t *testing.T) {
	lab, client, _ := started(t, testWorld())
	if ended, err := lab.endSessions("admin"); err != nil || ended.(map[string]int)["ended"] < 1 {
		t.Errorf("ended %v, %v", ended, err)
	}
	_, err := find.NewFinder(client.Client).DatacenterList(context.Background(), "*")
	if !fault.Is(err, &types.NotAuthenticated{}) {
		t.Errorf("after it: %v", err)
	}
}

func TestGuestsBootAndRedactWhatTheyWereToldTo(t *testing.T) {
	lab, _, f := started(t, testWorld())
	ctx := context.Background()
	vm, err := gpuVM(t, f, "guest", "DC0_C0_H0", "nvidia_h100xm-1-10c", false)
	if err != nil {
		t.Fatal(err)
	}
	option := func(key, value string) types.BaseOptionValue { return &types.OptionValue{Key: key, Value: value} }
	spec := types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		option("guestinfo.metadata", `{"local-hostname": "alpha", "redact": ["userdata"]}`),
		option("guestinfo.userdata", "one-time token")}}
	if err := done(ctx)(vm.Reconfigure(ctx, spec)); err != nil {
		t.Fatal(err)
	}
	if err := done(ctx)(vm.PowerOn(ctx)); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	address, err := vm.WaitForIP(limited, true)
	if err != nil || !strings.HasPrefix(address, "10.") {
		t.Fatalf("address %s, %v", address, err)
	}
	is := lab.reg.Get(vm.Reference()).(*simulator.VirtualMachine)
	if got := extraOf(is, "guestinfo.userdata"); got != redacted || is.Guest.HostName != "alpha" {
		t.Errorf("user data %q, name %s", got, is.Guest.HostName)
	}
}

func TestTheContentLibraryHasTheTemplates(t *testing.T) {
	_, _, f := started(t, testWorld())
	if _, err := f.VirtualMachine(context.Background(), "/DC0/vm/"+libraryFolder+"/ubuntu"); err != nil {
		t.Error(err)
	}
}

func TestARuleThatMeansNothingIsRefused(t *testing.T) {
	rules := &Rules{}
	for _, bad := range []Rule{
		{At: "somewhere", Fault: "Timedout"}, {At: atTask}, {At: atCall, Fault: "NoSuchFault"}, {At: atCall, Drop: dropAfter},
		{At: atHTTP, Fault: "Timedout"}, {At: atCall, Endless: true}, {At: atTask, Object: "[", Fault: "Timedout"},
		{At: atHTTP, Drop: "sometimes"}, {At: atTask, Fault: "Timedout", Count: -1},
	} {
		if _, err := rules.Add(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}
