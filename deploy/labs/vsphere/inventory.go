package main

import (
	"os"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
)

// Inventory is what there is, by name: whoever compares it with an earlier one sees what was left behind.
type Inventory struct {
	VMs        []string            `json:"vms"`
	Folders    []string            `json:"folders"`
	Pools      []string            `json:"pools"`
	Portgroups []string            `json:"portgroups"`
	Datastores map[string][]string `json:"datastores"` // name → what lies in its root
}

func inventoryOf(reg *simulator.Registry) (Inventory, error) {
	names := func(kind string) []string {
		list := []string{}
		for _, o := range reg.All(kind) {
			list = append(list, o.(mo.Entity).Entity().Name)
		}
		slices.Sort(list)
		return list
	}
	found := Inventory{VMs: names("VirtualMachine"), Folders: names("Folder"), Pools: names("ResourcePool"),
		Portgroups: names("DistributedVirtualPortgroup"), Datastores: map[string][]string{}}
	for _, o := range reg.All("Datastore") {
		store := o.(*simulator.Datastore)
		entries, err := os.ReadDir(store.Info.GetDatastoreInfo().Url)
		if err != nil {
			return found, err
		}
		inside := []string{}
		for _, entry := range entries {
			inside = append(inside, entry.Name())
		}
		found.Datastores[store.Name] = inside
	}
	return found, nil
}
