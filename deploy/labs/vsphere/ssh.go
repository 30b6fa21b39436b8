package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

const (
	// sshKey is where a VM says at which address of this machine its SSH server answers.
	sshKey       = "guestinfo.tenantry.ssh"
	sshHost      = "127.0.0.2"
	sshConfig    = "/etc/ssh/sshd_config.d/"
	handshake    = 20 * time.Second
	askRevoked   = 3 * time.Second
	mostSessions = 64
)

// SSHServers plays the SSH servers of powered-on VMs, one listener each. Who is let in is read from the VM's user-data
// as sshd would read it after cloud-init: nothing else is trusted, so what is missing there is missing here.
type SSHServers struct {
	mu      sync.Mutex
	running map[ref]*sshServer
	keys    map[string]ssh.Signer // host key by BIOS UUID: a VM keeps its own while it lives
}

type sshServer struct {
	guest    sshGuest
	trust    sshTrust
	config   *ssh.ServerConfig
	listener net.Listener
	mu       sync.Mutex
	open     map[net.Conn]bool
	ended    bool
}

// sshGuest is what a session shows.
type sshGuest struct {
	VM, Host string
	GPUs     []string
}

// sshTrust is what the user-data of a VM says of logins.
type sshTrust struct {
	Login      string
	Keys       []ssh.PublicKey // let in at any time
	CA         ssh.PublicKey   // nil: nobody's certificates
	Principals []string
	RevokedURL string // asked at each login by certificate; "" where nothing is asked
}

func newSSHServers() *SSHServers {
	return &SSHServers{running: map[ref]*sshServer{}, keys: map[string]ssh.Signer{}}
}

// With makes the boot of a VM start its server and tell where it is in guestinfo, which `remember` is told of as of
// everything that a guest writes. The VM's lock is held.
func (s *SSHServers) With(
	boot func(*simulator.VirtualMachine) []types.PropertyChange, remember func(vm ref, key, now, before string),
) func(*simulator.VirtualMachine) []types.PropertyChange {
	return func(vm *simulator.VirtualMachine) []types.PropertyChange {
		guest, trust, err := sshOf(vm) // before the boot: cloud-init may take the user-data away
		changes := boot(vm)
		if err != nil {
			log.Printf("ssh of %s: %v", vm.Name, err)
			return changes
		}
		if trust == nil {
			return changes
		}
		address, err := s.start(vm.Self, vm.Config.Uuid, guest, *trust)
		if err != nil {
			log.Printf("ssh of %s: %v", vm.Name, err)
			return changes
		}
		remember(vm.Self, sshKey, address, extraOf(vm, sshKey))
		return withExtra(vm, changes, sshKey, address)
	}
}

// Stop ends the server of a VM and everybody's session in it.
func (s *SSHServers) Stop(vm ref) {
	s.mu.Lock()
	server := s.running[vm]
	delete(s.running, vm)
	s.mu.Unlock()
	if server != nil {
		server.close()
	}
}

// Close ends all servers.
func (s *SSHServers) Close() {
	s.mu.Lock()
	all := make([]ref, 0, len(s.running))
	for vm := range s.running {
		all = append(all, vm)
	}
	s.mu.Unlock()
	for _, vm := range all {
		s.Stop(vm)
	}
}

func (s *SSHServers) start(vm ref, uuid string, guest sshGuest, trust sshTrust) (string, error) {
	s.Stop(vm)
	signer, err := s.hostKey(uuid)
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", sshHost+":0")
	if err != nil {
		return "", err
	}
	server := &sshServer{guest: guest, trust: trust, listener: listener, open: map[net.Conn]bool{}}
	server.config = &ssh.ServerConfig{PublicKeyCallback: server.mayEnter, MaxAuthTries: 6}
	server.config.AddHostKey(signer)
	s.mu.Lock()
	s.running[vm] = server
	s.mu.Unlock()
	go server.serve()
	return listener.Addr().String(), nil
}

func (s *SSHServers) hostKey(uuid string) (ssh.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.keys[uuid]; known != nil {
		return known, nil
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err == nil && uuid != "" {
		s.keys[uuid] = signer
	}
	return signer, err
}

// --- what the user-data says ----------------------------------------------------------------------------

// sshOf reads a VM; the trust is nil for a VM whose user-data lets nobody in.
func sshOf(vm *simulator.VirtualMachine) (sshGuest, *sshTrust, error) {
	name, _ := metadataOf(vm)
	if name == "" {
		name = vm.Name
	}
	guest := sshGuest{VM: vm.Name, Host: name, GPUs: gpusShown(vm)}
	text, err := unpack(extraOf(vm, "guestinfo.userdata"), extraOf(vm, "guestinfo.userdata.encoding"))
	if err != nil {
		return guest, nil, err
	}
	trust, err := trustOf(text)
	return guest, trust, err
}

type cloudConfig struct {
	Users []struct {
		Name string   `json:"name"`
		Keys []string `json:"ssh_authorized_keys"`
	} `json:"users"`
	Files []struct {
		Path    string `json:"path"`
		Content string `json:"content"`
	} `json:"write_files"`
}

// trustOf reads a cloud-config that is written as JSON. Nil: nobody may log in.
func trustOf(text []byte) (*sshTrust, error) {
	body, found := strings.CutPrefix(string(text), "#cloud-config\n")
	if !found {
		return nil, nil
	}
	var read cloudConfig
	if err := json.Unmarshal([]byte(body), &read); err != nil {
		return nil, fmt.Errorf("user-data: %w", err)
	}
	if len(read.Users) == 0 {
		return nil, nil
	}
	files := map[string]string{}
	for _, f := range read.Files {
		files[f.Path] = f.Content
	}
	trust := &sshTrust{Login: read.Users[0].Name}
	for _, line := range read.Users[0].Keys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, fmt.Errorf("ssh_authorized_keys: %w", err)
		}
		trust.Keys = append(trust.Keys, key)
	}
	return trust, trust.configure(files)
}

// configure reads sshd's settings and the files that they name.
func (t *sshTrust) configure(files map[string]string) error {
	for name, content := range files {
		if !strings.HasPrefix(name, sshConfig) || path.Ext(name) != ".conf" {
			continue
		}
		for line := range strings.Lines(content) {
			words := strings.Fields(line)
			if len(words) < 2 {
				continue
			}
			switch words[0] {
			case "TrustedUserCAKeys":
				key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(files[words[1]]))
				if err != nil {
					return fmt.Errorf("%s: %w", words[1], err)
				}
				t.CA = key
			case "AuthorizedPrincipalsFile":
				t.Principals = strings.Fields(files[strings.ReplaceAll(words[1], "%u", t.Login)])
			case "AuthorizedPrincipalsCommand": // program, address, file, serial, perhaps a CA: the program is played
				if len(words) < 5 || len(words) > 6 || words[4] != "%s" {
					return errors.New("AuthorizedPrincipalsCommand is none that is played")
				}
				t.RevokedURL = words[2]
				t.Principals = strings.Fields(files[strings.ReplaceAll(words[3], "%u", t.Login)])
			case "RevokedKeys":
				if _, ok := files[words[1]]; !ok {
					return fmt.Errorf("%s is not there: sshd lets nobody in", words[1])
				}
			}
		}
	}
	return nil
}

func gpusShown(vm *simulator.VirtualMachine) []string {
	var found []string
	for _, d := range vm.Config.Hardware.Device {
		device, ok := d.(*types.VirtualPCIPassthrough)
		if !ok {
			continue
		}
		label := "NVIDIA GPU"
		if b, ok := device.Backing.(*types.VirtualPCIPassthroughVmiopBackingInfo); ok {
			brand, board, _ := strings.Cut(b.Vgpu, "_")
			label = strings.ToUpper(brand + " " + board)
		}
		found = append(found, fmt.Sprintf("GPU %d: %s (UUID: GPU-%s-%d) [simulated]", len(found), label, vm.Config.Uuid, device.Key))
	}
	return found
}

// withExtra puts one key into the extraConfig that a list of changes will leave.
func withExtra(vm *simulator.VirtualMachine, changes []types.PropertyChange, key, value string) []types.PropertyChange {
	extra := vm.Config.ExtraConfig
	at := slices.IndexFunc(changes, func(c types.PropertyChange) bool { return c.Name == "config.extraConfig" })
	if at >= 0 {
		extra, _ = changes[at].Val.([]types.BaseOptionValue)
	}
	change := types.PropertyChange{Name: "config.extraConfig", Val: setOption(extra, key, value)}
	if at < 0 {
		return append(changes, change)
	}
	changes[at] = change
	return changes
}

// --- who may enter --------------------------------------------------------------------------------------

func (s *sshServer) mayEnter(conn ssh.ConnMetadata, given ssh.PublicKey) (*ssh.Permissions, error) {
	if conn.User() != s.trust.Login {
		return nil, fmt.Errorf("no account %q", conn.User())
	}
	certificate, ok := given.(*ssh.Certificate)
	if !ok {
		for _, key := range s.trust.Keys {
			if same(string(key.Marshal()), string(given.Marshal())) {
				return &ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}}, nil
			}
		}
		return nil, errors.New("no such key")
	}
	if certificate.CertType != ssh.UserCert {
		return nil, errors.New("no certificate of a user")
	}
	checker := &ssh.CertChecker{IsRevoked: s.isRevoked}
	if s.trust.CA == nil || !same(string(s.trust.CA.Marshal()), string(certificate.SignatureKey.Marshal())) {
		return nil, errors.New("signed by somebody else")
	}
	if len(certificate.ValidPrincipals) == 0 { // a certificate for everybody is none, as with sshd and principals
		return nil, errors.New("for nobody in particular")
	}
	err := errors.New("no principals are let in")
	for _, name := range s.trust.Principals {
		if err = checker.CheckCert(name, certificate); err == nil {
			return &certificate.Permissions, nil
		}
	}
	return nil, err
}

// isRevoked asks as the program in the guest does: where nobody answers, the certificate's own end has to do.
func (s *sshServer) isRevoked(certificate *ssh.Certificate) bool {
	if s.trust.RevokedURL == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askRevoked)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.trust.RevokedURL, nil)
	if err != nil {
		return false
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil || answer.StatusCode != http.StatusOK {
		return false
	}
	return slices.Contains(strings.Split(string(text), "\n"), fmt.Sprintf("serial: %d", certificate.Serial))
}

// --- sessions -------------------------------------------------------------------------------------------

func (s *sshServer) serve() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		if !s.keep(conn) {
			_ = conn.Close()
			continue
		}
		go func() {
			defer s.forget(conn)
			s.talk(conn)
		}()
	}
}

func (s *sshServer) keep(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.open) >= mostSessions {
		return false
	}
	s.open[conn] = true
	return true
}

func (s *sshServer) forget(conn net.Conn) {
	_ = conn.Close()
	s.mu.Lock()
	delete(s.open, conn)
	s.mu.Unlock()
}

func (s *sshServer) close() {
	s.mu.Lock()
	s.ended = true
	conns := make([]net.Conn, 0, len(s.open))
	for conn := range s.open {
		conns = append(conns, conn)
	}
	s.mu.Unlock()
	_ = s.listener.Close()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

func (s *sshServer) talk(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(handshake))
	server, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	go ssh.DiscardRequests(requests)
	for asked := range channels {
		if asked.ChannelType() != "session" {
			_ = asked.Reject(ssh.Prohibited, "sessions only")
			continue
		}
		channel, requests, err := asked.Accept()
		if err != nil {
			return
		}
		_, terminal := server.Permissions.Extensions["permit-pty"]
		go s.session(channel, requests, terminal)
	}
}

func (s *sshServer) session(channel ssh.Channel, requests <-chan *ssh.Request, mayTerminal bool) {
	hasTerminal, begun := false, false
	for request := range requests {
		ok := false
		switch request.Type {
		case "pty-req":
			ok = mayTerminal && !begun
			hasTerminal = hasTerminal || ok
		case "env", "window-change":
			ok = true
		case "shell":
			if ok = !begun; ok {
				begun = true
				go s.shell(channel, hasTerminal)
			}
		case "exec":
			var given struct{ Command string }
			if ok = !begun && ssh.Unmarshal(request.Payload, &given) == nil; ok {
				begun = true
				go func() { end(channel, s.guest.run(channel, given.Command)) }()
			}
		}
		if request.WantReply {
			_ = request.Reply(ok, nil)
		}
	}
}

func (s *sshServer) shell(channel ssh.Channel, hasTerminal bool) {
	welcome := fmt.Sprintf("simulated VM %s: nothing runs here but a few commands; `exit` ends it\n", s.guest.VM)
	status := uint32(0)
	if hasTerminal {
		screen := term.NewTerminal(channel, fmt.Sprintf("%s@%s:~$ ", s.trust.Login, s.guest.Host))
		_, _ = io.WriteString(screen, welcome)
		for {
			line, err := screen.ReadLine()
			if err != nil || strings.TrimSpace(line) == "exit" {
				break
			}
			status = s.guest.run(screen, line)
		}
	} else {
		_, _ = io.WriteString(channel, welcome)
		lines := bufio.NewScanner(channel)
		for lines.Scan() && strings.TrimSpace(lines.Text()) != "exit" {
			status = s.guest.run(channel, lines.Text())
		}
	}
	end(channel, status)
}

func end(channel ssh.Channel, status uint32) {
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
	_ = channel.Close()
}

// run plays one command and returns its exit status.
func (g sshGuest) run(out io.Writer, line string) uint32 {
	say := func(lines ...string) uint32 {
		for _, text := range lines {
			_, _ = io.WriteString(out, text+"\n")
		}
		return 0
	}
	switch words := strings.Fields(line); {
	case len(words) == 0 || words[0] == "true":
		return 0
	case words[0] == "hostname":
		return say(g.Host)
	case words[0] == "echo":
		return say(strings.Join(words[1:], " "))
	case words[0] == "uname":
		return say(fmt.Sprintf("Linux %s (simulated VM %s)", g.Host, g.VM))
	case words[0] == "nvidia-smi" && len(g.GPUs) == 0:
		say("No devices were found")
		return 6
	case words[0] == "nvidia-smi":
		return say(g.GPUs...)
	default:
		say(fmt.Sprintf("simulated VM %s: %.60s: command not found", g.VM, words[0]))
		return 127
	}
}
