// A device plugin that offers MIG devices which do not exist, so that a real kubelet counts, admits and hands out.
//
// It speaks the kubelet's device plugin API v1beta1 as NVIDIA's plugin does: one registration per resource, devices
// named by MIG UUIDs, the choice handed to the container as NVIDIA_VISIBLE_DEVICES. What it chose for whom it appends to
// a file, one JSON object per allocation, for the lab's tests.
//
//	device-plugin -kubelet DIR -log FILE nvidia.com/mig-1g.10gb=MIG-…,MIG-… [resource=ids]…
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	resource string
	devices  []string
	log      *os.File
	lock     *sync.Mutex
	done     <-chan struct{}
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch tells all devices once, healthy; they do not change while this program runs.
func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	found := make([]*api.Device, 0, len(p.devices))
	for _, id := range p.devices {
		found = append(found, &api.Device{ID: id, Health: api.Healthy})
	}
	if err := stream.Send(&api.ListAndWatchResponse{Devices: found}); err != nil {
		return err
	}
	select {
	case <-stream.Context().Done():
	case <-p.done:
	}
	return nil
}

// Allocate hands out what the kubelet chose and writes it down.
func (p *plugin) Allocate(_ context.Context, asked *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, container := range asked.ContainerRequests {
		line, err := json.Marshal(map[string]any{
			"at": time.Now().UTC().Format(time.RFC3339Nano), "resource": p.resource, "devices": container.DevicesIds,
		})
		if err != nil {
			return nil, err
		}
		p.lock.Lock()
		_, err = p.log.Write(append(line, '\n'))
		p.lock.Unlock()
		if err != nil {
			return nil, err
		}
		answer.ContainerResponses = append(answer.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return answer, nil
}

func (p *plugin) PreStartContainer(context.Context, *api.PreStartContainerRequest) (*api.PreStartContainerResponse, error) {
	return &api.PreStartContainerResponse{}, nil
}

func (p *plugin) GetPreferredAllocation(context.Context, *api.PreferredAllocationRequest) (*api.PreferredAllocationResponse, error) {
	return &api.PreferredAllocationResponse{}, nil
}

// serve listens beside the kubelet's socket and registers there.
func (p *plugin) serve(folder string) error {
	name := "lab-" + strings.NewReplacer("/", "-", ".", "-").Replace(p.resource) + ".sock"
	path := filepath.Join(folder, name)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go func() {
		if err := server.Serve(listener); err != nil {
			log.Fatalf("%s: %v", p.resource, err)
		}
	}()
	connection, err := grpc.NewClient("unix://"+filepath.Join(folder, "kubelet.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	limit, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(connection).Register(limit, &api.RegisterRequest{
		Version: api.Version, Endpoint: name, ResourceName: p.resource, Options: &api.DevicePluginOptions{},
	}, grpc.WaitForReady(true))
	return err
}

func run() error {
	folder := flag.String("kubelet", "/var/lib/kubelet/device-plugins", "folder of kubelet.sock")
	file := flag.String("log", "", "file of allocations")
	flag.Parse()
	out, err := os.OpenFile(*file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	end, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	lock := &sync.Mutex{}
	for _, word := range flag.Args() {
		resource, ids, found := strings.Cut(word, "=")
		if !found {
			return fmt.Errorf("%q is not resource=id,id", word)
		}
		one := &plugin{resource: resource, devices: strings.Split(ids, ","), log: out, lock: lock, done: end.Done()}
		if err := one.serve(*folder); err != nil {
			return fmt.Errorf("%s: %w", resource, err)
		}
		log.Printf("registered %s with %d devices", resource, len(one.devices))
	}
	<-end.Done()
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
