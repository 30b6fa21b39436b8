package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
)

// World is what the lab's vCenter has at its start; the Python side writes it (controlplane/labs/vsphere/worlds.py).
type World struct {
	APIVersion   string      `json:"api_version"`   // an id that pyVmomi knows, 8.0.3.0
	InstanceUUID string      `json:"instance_uuid"` // about.instanceUuid
	Seed         uint64      `json:"seed"`
	Policy       string      `json:"policy"` // of hosts that name none
	Datacenters  int         `json:"datacenters"`
	Clusters     int         `json:"clusters"`
	Hosts        int         `json:"hosts"`      // per cluster
	HostNames    []string    `json:"host_names"` // in the order of hosts; those beyond keep DC0_C0_H0 and so on
	HostVCPU     int16       `json:"host_vcpu"`  // hardware threads of every host
	HostMemory   int64       `json:"host_memory_gib"`
	Datastores   int         `json:"datastores"`
	Portgroups   int         `json:"portgroups"`
	GPUHosts     []GPUHosts  `json:"gpu_hosts"`
	Templates    []Template  `json:"templates"`
	Library      string      `json:"library"` // content library with the templates; empty: none
	OVFs         []OVF       `json:"ovfs"`    // further items of that library
	VMs          []ForeignVM `json:"vms"`
	Roles        []string    `json:"roles"`
	Guests       bool        `json:"guests"` // powered-on VMs get tools, a name and an address
}

// GPUHosts are hosts with equal GPUs.
type GPUHosts struct {
	Hosts  []string `json:"hosts"` // patterns of names, DC0_C0_H*
	Policy string   `json:"policy"`
	GPUs   []GPU    `json:"gpus"`
}

// Template is a VM to clone; it is also an item of the content library.
type Template struct {
	Name       string `json:"name"`
	Firmware   string `json:"firmware"`
	Annotation string `json:"annotation"`
	GuestID    string `json:"guest_id"`
}

// OVF is an item of the content library with a descriptor alone: its disk is empty.
type OVF struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	GuestID     string `json:"guest_id"`
	DiskGiB     int    `json:"disk_gib"`
}

// ForeignVM is a VM that is nobody's of ours.
type ForeignVM struct {
	Name    string   `json:"name"`
	Host    string   `json:"host"`
	Types   []string `json:"types"`
	PowerOn bool     `json:"power_on"`
}

// readWorld reads a world; an empty file name gives the smallest useful one. Unknown fields are refused, because
// a misspelled one would be silently without effect.
func readWorld(file string) (*World, error) {
	w := &World{
		APIVersion: "8.0.3.0", Policy: policyFirst, Datacenters: 1, Clusters: 1, Hosts: 1, HostVCPU: 128, HostMemory: 1024,
		Datastores: 1, Portgroups: 1,
	}
	if file == "" {
		return w, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	decoder := json.NewDecoder(f)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(w); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return w, w.check()
}

func (w *World) check() error {
	known := []string{policyFirst, policySpread, policyAdversarial}
	if !slices.Contains(known, w.Policy) {
		return fmt.Errorf("policy %q is none of %v", w.Policy, known)
	}
	if w.HostVCPU < 2 || w.HostMemory < 1 {
		return fmt.Errorf("a host has at least 2 vCPU and 1 GiB, not %d and %d", w.HostVCPU, w.HostMemory)
	}
	for _, h := range w.GPUHosts {
		if h.Policy != "" && !slices.Contains(known, h.Policy) {
			return fmt.Errorf("policy %q is none of %v", h.Policy, known)
		}
		for _, pattern := range h.Hosts {
			if _, err := path.Match(pattern, ""); err != nil {
				return fmt.Errorf("hosts %q: %w", pattern, err)
			}
		}
		for i := range h.GPUs {
			if err := h.GPUs[i].check(); err != nil {
				return fmt.Errorf("hosts %v, GPU %d: %w", h.Hosts, i, err)
			}
		}
	}
	return nil
}

func (h *GPUHosts) has(name string) bool {
	return len(h.Hosts) == 0 || slices.ContainsFunc(h.Hosts, func(pattern string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	})
}
