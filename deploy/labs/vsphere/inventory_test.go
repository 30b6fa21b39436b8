package main

import (
	"slices"
	"testing"
)

func TestTheInventoryNamesWhatThereIs(t *testing.T) {
	lab, _, _ := started(t, testWorld())

	found, err := inventoryOf(lab.reg)
	if err != nil {
		t.Fatal(err)
	}

	if !slices.Contains(found.VMs, "ubuntu") || !slices.Contains(found.Folders, "vm") ||
		!slices.Contains(found.Portgroups, "DC0_DVPG0") || len(found.Pools) == 0 {
		t.Errorf("%+v", found)
	}
	if !slices.Contains(found.Datastores["LocalDS_0"], "ubuntu") {
		t.Errorf("%v", found.Datastores)
	}
}
