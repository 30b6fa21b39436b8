package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Kinds of a vGPU type, as `vgpuProfileInfo.profileSharing` names them.
const (
	sharingMig        = "mig"
	sharingTimeSliced = "timeSliced"
)

// Policies by which a host chooses GPU and start.
const (
	policyFirst       = "first"
	policySpread      = "spread"
	policyAdversarial = "adversarial"
)

// Type is a vGPU type that a GPU can carry.
type Type struct {
	Name           string `json:"name"`
	Sharing        string `json:"sharing"`
	FramebufferGiB int64  `json:"framebuffer_gib"`
	Size           int    `json:"size"`        // MIG: placement positions taken
	Starts         []int  `json:"starts"`      // MIG: the only legal ones
	MaxPerGPU      int    `json:"max_per_gpu"` // of this type alone
	Media          bool   `json:"media"`       // takes the single media-extension unit
}

// Window is what one virtual device holds of one GPU. A whole or time-sliced share has start -1.
type Window struct {
	VM    string `json:"vm"` // object id, vm-42
	Type  string `json:"type"`
	Start int    `json:"start"`
	Size  int    `json:"size"`
}

// GPU is one physical device and what is on it. The zero mode is an empty GPU that takes any.
type GPU struct {
	PciID       string   `json:"pci_id"`
	Name        string   `json:"name"`
	VendorID    int      `json:"vendor_id"`
	DeviceID    int      `json:"device_id"`
	MemoryKiB   int64    `json:"memory_kib"`
	Slices      int      `json:"slices"`
	Types       []Type   `json:"types"`
	Passthrough bool     `json:"passthrough"` // given to VMs whole by DirectPath, never as vGPU
	Label       string   `json:"label"`       // hardware label of Assignable Hardware
	FixedMode   string   `json:"fixed_mode"`  // a mode that only people can change: mig, timeSliced
	Held        []Window `json:"held"`
}

// Want is one virtual device of a VM: a vGPU type, or a passthrough device by id, or by vendor, device and label.
type Want struct {
	Type               string
	PciID              string
	Allowed            [][2]int // vendor, device
	Label              string
	Passthrough        bool
	DynamicPassthrough bool
}

// place is one way to serve a want.
type place struct {
	gpu    int
	window Window
}

// Mode is mig, timeSliced, or empty while nothing is on the GPU.
func (g *GPU) Mode() string {
	if len(g.Held) == 0 || g.Passthrough {
		return g.FixedMode
	}
	if g.Held[0].Start >= 0 {
		return sharingMig
	}
	return sharingTimeSliced
}

// vgpuMode is the mode as `graphicsInfo[].vgpuMode` names it.
func (g *GPU) vgpuMode() string {
	switch g.Mode() {
	case sharingMig:
		return "multiInstanceGpu"
	case sharingTimeSliced:
		return "sameSize"
	}
	return "none"
}

func (g *GPU) typeNamed(name string) *Type {
	for i := range g.Types {
		if g.Types[i].Name == name {
			return &g.Types[i]
		}
	}
	return nil
}

// starts returns where a type fits now, beside what is on the GPU. The first VM fixes the mode; time-sliced VMs
// also fix the size.
func (g *GPU) starts(t *Type) []int {
	if g.Passthrough || (g.Mode() != "" && g.Mode() != t.Sharing) {
		return nil
	}
	if t.Sharing == sharingTimeSliced {
		if len(g.Held) >= t.MaxPerGPU || (len(g.Held) > 0 && g.Held[0].Type != t.Name) {
			return nil
		}
		return []int{-1}
	}
	if t.Media && slices.ContainsFunc(g.Held, func(w Window) bool {
		held := g.typeNamed(w.Type)
		return held != nil && held.Media
	}) {
		return nil
	}
	var free []int
	for _, start := range t.Starts {
		if start+t.Size <= g.Slices && !slices.ContainsFunc(g.Held, func(w Window) bool {
			return start < w.Start+w.Size && w.Start < start+t.Size
		}) {
			free = append(free, start)
		}
	}
	return free
}

// openings counts the placements that would be left if `w` were on the GPU too: what the adversary makes small.
func (g *GPU) openings(w Window) int {
	with := *g
	with.Held = append(slices.Clone(g.Held), w)
	count := 0
	for i := range with.Types {
		count += len(with.starts(&with.Types[i]))
	}
	return count
}

func (g *GPU) fitsPassthrough(w Want) bool {
	if !g.Passthrough || len(g.Held) > 0 {
		return false
	}
	if !w.DynamicPassthrough {
		return w.PciID == g.PciID
	}
	if w.Label != "" && w.Label != g.Label {
		return false
	}
	return slices.Contains(w.Allowed, [2]int{g.VendorID, g.DeviceID})
}

// Chooser gives windows of one host's GPUs by the host's own policy.
type Chooser struct {
	Policy string
	Dice   *rand.Rand
}

// Choose returns a place for every want, or false when they do not all fit; nothing is held yet.
//
// Several devices of one VM are placed one after the other on a copy, each by the policy: as a host would, and so
// that a VM is never half placed.
func (c Chooser) Choose(gpus []GPU, vm string, wants []Want) ([]place, bool) {
	trial := make([]GPU, len(gpus))
	for i := range gpus {
		trial[i] = gpus[i]
		trial[i].Held = slices.Clone(gpus[i].Held)
	}
	var chosen []place
	for _, want := range wants {
		options := optionsOf(trial, vm, want)
		if len(options) == 0 {
			return nil, false
		}
		one := c.pick(trial, options)
		trial[one.gpu].Held = append(trial[one.gpu].Held, one.window)
		chosen = append(chosen, one)
	}
	return chosen, true
}

func optionsOf(gpus []GPU, vm string, want Want) []place {
	var options []place
	for i := range gpus {
		g := &gpus[i]
		if want.Passthrough {
			if g.fitsPassthrough(want) {
				options = append(options, place{i, Window{VM: vm, Start: -1, Size: g.Slices}})
			}
			continue
		}
		t := g.typeNamed(want.Type)
		if t == nil {
			continue
		}
		for _, start := range g.starts(t) {
			size := t.Size
			if start < 0 {
				size = g.Slices / max(t.MaxPerGPU, 1)
			}
			options = append(options, place{i, Window{VM: vm, Type: t.Name, Start: start, Size: size}})
		}
	}
	return options
}

func (c Chooser) pick(gpus []GPU, options []place) place {
	switch c.Policy {
	case policySpread:
		return slices.MinFunc(options, func(a, b place) int {
			return len(gpus[a.gpu].Held) - len(gpus[b.gpu].Held) // the first of equal ones
		})
	case policyAdversarial:
		// the most placements taken away from others; equal ones by lot, so that no order can be relied on
		worst, count := []place{}, -1
		for _, o := range options {
			g := &gpus[o.gpu]
			lost := -g.openings(o.window)
			for i := range g.Types {
				lost += len(g.starts(&g.Types[i]))
			}
			if lost > count {
				worst, count = nil, lost
			}
			if lost == count {
				worst = append(worst, o)
			}
		}
		return worst[c.Dice.IntN(len(worst))]
	}
	return options[0]
}

// check refuses a GPU that cannot be.
func (g *GPU) check() error {
	for _, t := range g.Types {
		switch {
		case t.Sharing != sharingMig && t.Sharing != sharingTimeSliced:
			return fmt.Errorf("type %s: sharing is %s or %s, not %q", t.Name, sharingMig, sharingTimeSliced, t.Sharing)
		case t.Sharing == sharingMig && (t.Size < 1 || len(t.Starts) == 0):
			return fmt.Errorf("type %s: a MIG-backed type has a size and legal starts", t.Name)
		case t.MaxPerGPU < 1:
			return fmt.Errorf("type %s: max_per_gpu is at least 1", t.Name)
		}
	}
	return nil
}
