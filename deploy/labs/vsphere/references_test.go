package main

import (
	"context"
	"testing"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

func TestARebuiltInventoryHasTheSameObjectsByOtherReferences(t *testing.T) {
	lab, client, f := started(t, testWorld())
	ctx := context.Background()
	before, err := f.VirtualMachine(ctx, "/DC0/vm/ubuntu")
	if err != nil {
		t.Fatal(err)
	}

	lab.references.Rebuild()

	after, err := find.NewFinder(client.Client).VirtualMachine(ctx, "/DC0/vm/ubuntu")
	if err != nil || after.Reference() == before.Reference() {
		t.Fatalf("found as %v, before as %v: %v", after, before, err)
	}
	if name, err := after.ObjectName(ctx); err != nil || name != "ubuntu" {
		t.Errorf("the new reference is of %q: %v", name, err)
	}
	_, err = object.NewVirtualMachine(client.Client, before.Reference()).ObjectName(ctx)
	var gone *types.ManagedObjectNotFound
	if _, is := fault.As(err, &gone); !is || gone.Obj != before.Reference() {
		t.Errorf("the old reference: %v", err)
	}
	lab.references.Rebuild()
	if _, err := after.ObjectName(ctx); !fault.Is(err, &types.ManagedObjectNotFound{}) {
		t.Errorf("a reference of the inventory before: %v", err)
	}
}

func TestOnlyReferencesAreRenumbered(t *testing.T) {
	for text, want := range map[string]string{
		`<a type="Task">task-7</a><b>domain-c8</b><c>group-d1</c><d>group-3</d>`: `<a type="Task">task-1000007</a><b>domain-c1000008</b><c>group-d1</c><d>group-1000003</d>`,
		`<name>vm-007x</name><name>my vm-7</name><a>LocalDS_0</a>`:               `<name>vm-007x</name><name>my vm-7</name><a>LocalDS_0</a>`,
	} {
		told := string(outside([]byte(text), oneInventory))
		if told != want {
			t.Errorf("%s", told)
		}
		if back := string(inside([]byte(told), oneInventory)); back != text {
			t.Errorf("back: %s", back)
		}
	}
	if back := string(outside(inside([]byte("<a>vm-42</a>"), oneInventory), oneInventory)); back != "<a>vm-42</a>" {
		t.Errorf("what is gone is told as %s", back)
	}
}
