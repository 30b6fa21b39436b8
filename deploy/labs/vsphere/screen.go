package main

import (
	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// screen stands in for a VM during one call that the library lacks: it gives out tickets of consoles. Nothing answers
// at their address.
type screen struct {
	*simulator.VirtualMachine
}

// AcquireTicket gives a ticket for the console of a VM that runs.
func (s *screen) AcquireTicket(ctx *simulator.Context, req *types.AcquireTicket) soap.HasFault {
	ctx.Session.Remove(ctx, s.Self)
	body := &methods.AcquireTicketBody{}
	switch {
	case req.TicketType != string(types.VirtualMachineTicketTypeWebmks):
		body.Fault_ = simulator.Fault("", &types.InvalidArgument{InvalidProperty: "ticketType"})
	case s.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn:
		body.Fault_ = simulator.Fault("", &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: s.Runtime.PowerState,
		})
	default:
		body.Res = &types.AcquireTicketResponse{Returnval: types.VirtualMachineTicket{
			Ticket: uuid.NewString(), CfgFile: s.Config.Files.VmPathName, Host: "console.simulated.invalid", Port: 443,
		}}
	}
	return body
}
