// Command vcenter is a vCenter simulator for a lab: govmomi's, with hosts that have GPUs and choose among them,
// faults on demand, and no entry without a password. Nothing that it shows is real.
package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	_ "github.com/vmware/govmomi/pbm/simulator"
	_ "github.com/vmware/govmomi/vapi/namespace/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
	_ "github.com/vmware/govmomi/vapi/vm/simulator"
)

// Login is a user who may log in; the first of a list may also use the control address.
type Login struct {
	User     string `json:"user"`
	Password string `json:"password"`
}

// Options say where the lab listens and with what.
type Options struct {
	Listen      string
	Certificate tls.Certificate
	Authority   *x509.CertPool // the lab is a client of its own REST side
	Logins      []Login
}

// Lab is a running simulator.
type Lab struct {
	model      *simulator.Model
	reg        *simulator.Registry
	estate     *Estate
	rules      *Rules
	rights     *Rights
	guests     *Guests
	calls      *Calls
	references *References
	furnisher  *Furnisher
	server     *simulator.Server
}

func main() {
	log.SetFlags(log.LstdFlags | log.LUTC)
	file := flag.String("world", "", "JSON file: what is there")
	folder := flag.String("pki", "", "folder with ca.crt, vcenter.crt and vcenter.key")
	logins := flag.String("logins", "", "JSON file: who may log in")
	listen := flag.String("listen", "127.0.0.1:0", "address, on loopback")
	flag.Parse()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	lab, err := startFrom(*file, *folder, *logins, *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("READY https://%s%s\n", lab.server.URL.Host, lab.server.URL.Path)
	<-stop
	lab.Close()
}

func startFrom(file, folder, logins, listen string) (*Lab, error) {
	world, err := readWorld(file)
	if err != nil {
		return nil, err
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(folder, "vcenter.crt"), filepath.Join(folder, "vcenter.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(logins)
	if err != nil {
		return nil, err
	}
	options := Options{Listen: listen, Certificate: certificate, Authority: x509.NewCertPool()}
	if err := json.Unmarshal(text, &options.Logins); err != nil {
		return nil, fmt.Errorf("%s: %w", logins, err)
	}
	options.Authority.AppendCertsFromPEM(ca)
	return start(world, options)
}

// start makes the world and serves it; it returns when the world is complete.
func start(w *World, o Options) (*Lab, error) {
	if len(o.Logins) == 0 || o.Logins[0].User == "" || o.Logins[0].Password == "" {
		return nil, errors.New("nobody may log in: give a user and a password")
	}
	ctx := context.Background()
	m := modelOf(w)
	// a task that waits holds no lock of its object, so that others can look at the object meanwhile
	simulator.TaskDelay.MethodDelay = map[string]int{"LockHandoff": 0}
	if err := m.Create(); err != nil {
		return nil, err
	}
	l := &Lab{model: m, reg: m.Map(), rules: &Rules{}, rights: newRights(m.Map())}
	l.guests = &Guests{reg: l.reg, ssh: newSSHServers(), written: map[ref]map[string]written{}}
	l.guests.boot.Store(w.Guests)
	l.estate = newEstate(l.reg, w)
	tasks := newTasks(l.reg, l.estate, l.rules, l.guests)
	l.references = &References{}
	l.calls = &Calls{reg: l.reg, rules: l.rules, tasks: tasks, counts: map[string]int{}}

	var err error
	if l.furnisher, err = newFurnisher(ctx, m.Service, w); err != nil {
		return nil, err
	}
	for _, furnish := range []func(context.Context) error{l.furnisher.Templates, l.furnisher.Roles} {
		if err := furnish(ctx); err != nil {
			return nil, err
		}
	}
	for _, vm := range w.VMs {
		if err := l.furnisher.Foreign(ctx, vm); err != nil {
			return nil, fmt.Errorf("VM %s: %w", vm.Name, err)
		}
	}
	l.reg.Handler = l.calls.Check
	l.serve(o)
	address := *l.server.URL
	if err := l.furnisher.Library(ctx, &address, &tls.Config{RootCAs: o.Authority}); err != nil {
		l.Close()
		return nil, err
	}
	l.calls.Forget()
	return l, nil
}

func modelOf(w *World) *simulator.Model {
	m := simulator.VPX()
	m.Datacenter, m.Cluster, m.ClusterHost, m.Host = w.Datacenters, w.Clusters, w.Hosts, 0
	m.Datastore, m.Portgroup, m.Machine, m.Autostart = w.Datastores, w.Portgroups, len(w.Templates), false
	about := &m.ServiceContent.About
	about.ApiVersion = w.APIVersion
	about.FullName += " (simulated)"
	if w.InstanceUUID != "" {
		about.InstanceUuid = w.InstanceUUID
	}
	return m
}

func (l *Lab) serve(o Options) {
	s := l.model.Service
	s.RegisterEndpoints = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{o.Certificate}, MinVersion: tls.VersionTLS12}
	s.Listen = &url.URL{Host: o.Listen, User: url.UserPassword(o.Logins[0].User, o.Logins[0].Password)}
	s.ServeMux = http.NewServeMux()
	l.reg.SessionManager().ValidLogin = func(given *types.Login) bool {
		for _, one := range o.Logins {
			if same(given.UserName, one.User) && same(given.Password, one.Password) {
				return true
			}
		}
		return false
	}
	mayControl := func(r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		return same(user, o.Logins[0].User) && same(password, o.Logins[0].Password)
	}
	around := http.NewServeMux()
	around.Handle(ControlPath, control(l, mayControl))
	around.Handle("/", l.references.Around(l.calls.Around(s.ServeMux)))
	l.server = s.NewServer()
	l.server.Config.Handler = around // nobody knows the address before the caller does
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// Close ends endless tasks, the server, and takes away the datastores' folders.
func (l *Lab) Close() {
	l.rules.Delete(0)
	l.guests.ssh.Close()
	l.server.CloseClientConnections()
	l.server.Close()
	l.model.Remove()
}
