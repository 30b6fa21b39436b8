package main

import (
	"math/rand/v2"
	"testing"
)

func h100() GPU {
	mig := func(name string, size, most int, media bool, starts ...int) Type {
		return Type{Name: name, Sharing: sharingMig, Size: size, Starts: starts, MaxPerGPU: most, Media: media}
	}
	return GPU{PciID: "0000:1b:00.0", Slices: 8, VendorID: 0x10de, DeviceID: 0x2330, Types: []Type{
		mig("nvidia_h100xm-1-10c", 1, 7, false, 0, 1, 2, 3, 4, 5, 6),
		mig("nvidia_h100xm-1-10cme", 1, 1, true, 0, 1, 2, 3, 4, 5, 6),
		mig("nvidia_h100xm-2-20c", 2, 3, false, 0, 2, 4),
		mig("nvidia_h100xm-3-40c", 4, 2, false, 0, 4),
		mig("nvidia_h100xm-4-40c", 4, 1, false, 0),
		mig("nvidia_h100xm-7-80c", 8, 1, false, 0),
		{Name: "nvidia_h100xm-80c", Sharing: sharingTimeSliced, MaxPerGPU: 1},
		{Name: "nvidia_h100xm-40c", Sharing: sharingTimeSliced, MaxPerGPU: 2},
	}}
}

func chooser(policy string, seed uint64) Chooser {
	return Chooser{policy, rand.New(rand.NewPCG(seed, 0))}
}

// take places one VM with one device, as a power-on does.
func take(t *testing.T, c Chooser, gpus []GPU, kind string) (place, bool) {
	t.Helper()
	chosen, ok := c.Choose(gpus, "vm-1", []Want{{Type: kind}})
	if !ok {
		return place{}, false
	}
	gpus[chosen[0].gpu].Held = append(gpus[chosen[0].gpu].Held, chosen[0].window)
	return chosen[0], true
}

func TestFirstTakesTheLowestGPUAndStart(t *testing.T) {
	gpus := []GPU{h100(), h100()}
	for i, want := range []place{{gpu: 0}, {gpu: 0, window: Window{Start: 4}}, {gpu: 1}} {
		got, ok := take(t, chooser(policyFirst, 1), gpus, "nvidia_h100xm-3-40c")
		if !ok || got.gpu != want.gpu || got.window.Start != want.window.Start {
			t.Errorf("VM %d went to %+v (%v)", i, got, ok)
		}
	}
}

func TestSpreadTakesTheEmptiestGPU(t *testing.T) {
	gpus := []GPU{h100(), h100()}
	first, _ := take(t, chooser(policySpread, 1), gpus, "nvidia_h100xm-1-10c")
	second, _ := take(t, chooser(policySpread, 1), gpus, "nvidia_h100xm-1-10c")
	if first.gpu != 0 || second.gpu != 1 {
		t.Errorf("went to GPUs %d and %d", first.gpu, second.gpu)
	}
}

func TestTheAdversaryTakesMoreFromOthersThanFirstDoesAndRepeatsItselfByItsSeed(t *testing.T) {
	runs := map[uint64][]place{}
	for _, seed := range []uint64{7, 7, 8} {
		gpus, went := []GPU{h100(), h100()}, []place{}
		for range 4 {
			one, ok := take(t, chooser(policyAdversarial, seed+uint64(len(went))), gpus, "nvidia_h100xm-1-10c")
			if !ok {
				t.Fatal("did not fit")
			}
			went = append(went, one)
		}
		if before, ok := runs[seed]; ok {
			for i := range before {
				if before[i] != went[i] {
					t.Errorf("seed %d went to %v, then to %v", seed, before, went)
				}
			}
		}
		runs[seed] = went
		if went[0].gpu == went[1].gpu && went[0].window.Start/4 == went[1].window.Start/4 {
			t.Errorf("seed %d left the other half alone: %v", seed, went)
		}
	}
}

func TestTheFirstVMFixesTheModeUntilTheGPUIsEmpty(t *testing.T) {
	gpus := []GPU{h100()}
	c := chooser(policyFirst, 1)
	_, slice := take(t, c, gpus, "nvidia_h100xm-1-10c")
	_, whole := take(t, c, gpus, "nvidia_h100xm-80c")
	if !slice || whole || gpus[0].vgpuMode() != "multiInstanceGpu" {
		t.Errorf("slice %v, then whole %v in mode %s", slice, whole, gpus[0].vgpuMode())
	}

	gpus[0].Held = nil
	_, half := take(t, c, gpus, "nvidia_h100xm-40c")
	_, other := take(t, c, gpus, "nvidia_h100xm-80c")
	_, same := take(t, c, gpus, "nvidia_h100xm-40c")
	_, third := take(t, c, gpus, "nvidia_h100xm-40c")
	if !half || other || !same || third || gpus[0].vgpuMode() != "sameSize" {
		t.Errorf("half %v, another size %v, same %v, one too many %v", half, other, same, third)
	}
}

func TestWindowsNeverOverlapAndOnlyLegalStartsAreUsed(t *testing.T) {
	kinds := h100().Types
	for seed := range uint64(200) {
		dice := rand.New(rand.NewPCG(seed, 1))
		policy := []string{policyFirst, policySpread, policyAdversarial}[seed%3]
		gpus, c := []GPU{h100(), h100()}, chooser(policy, seed)
		for range 30 {
			take(t, c, gpus, kinds[dice.IntN(len(kinds))].Name)
			if dice.IntN(3) == 0 {
				g := &gpus[dice.IntN(2)]
				if len(g.Held) > 0 {
					g.Held = g.Held[1:]
				}
			}
			for _, g := range gpus {
				seen, media := map[int]bool{}, 0
				for _, w := range g.Held {
					if g.typeNamed(w.Type).Media {
						media++
					}
					for s := w.Start; w.Start >= 0 && s < w.Start+w.Size; s++ {
						if seen[s] || s >= g.Slices {
							t.Fatalf("seed %d: %v overlap", seed, g.Held)
						}
						seen[s] = true
					}
				}
				if media > 1 {
					t.Fatalf("seed %d: two media types on one GPU: %v", seed, g.Held)
				}
			}
		}
	}
}

func TestSeveralDevicesOfOneVMFitAllOrNone(t *testing.T) {
	gpus := []GPU{h100(), h100()}
	c := chooser(policyFirst, 1)
	whole := Want{Type: "nvidia_h100xm-80c"}
	if chosen, ok := c.Choose(gpus, "vm-1", []Want{whole, whole}); !ok || chosen[0].gpu == chosen[1].gpu {
		t.Errorf("two whole GPUs: %v, %v", chosen, ok)
	}
	if _, ok := c.Choose(gpus, "vm-1", []Want{whole, whole, whole}); ok {
		t.Error("three whole GPUs on two")
	}
	if len(gpus[0].Held)+len(gpus[1].Held) != 0 {
		t.Error("choosing holds nothing")
	}
}

func TestPassthroughTakesTheNamedDeviceOrOneWithTheLabel(t *testing.T) {
	given, shared := h100(), h100()
	given.Passthrough, given.Label, given.PciID = true, "tenants", "0000:5b:00.0"
	gpus, c := []GPU{shared, given}, chooser(policyFirst, 1)
	try := func(w Want) bool {
		w.Passthrough = true
		chosen, ok := c.Choose(gpus, "vm-1", []Want{w})
		return ok && chosen[0].gpu == 1
	}
	ids := [][2]int{{0x10de, 0x2330}}
	if !try(Want{PciID: "0000:5b:00.0"}) || !try(Want{DynamicPassthrough: true, Allowed: ids, Label: "tenants"}) {
		t.Error("does not give its passthrough device")
	}
	if try(Want{PciID: "0000:1b:00.0"}) || try(Want{DynamicPassthrough: true, Allowed: ids, Label: "others"}) {
		t.Error("gives what it may not")
	}
	if _, ok := c.Choose(gpus[1:], "vm-1", []Want{{Type: "nvidia_h100xm-1-10c"}}); ok {
		t.Error("a passthrough GPU has no vGPU")
	}
}
