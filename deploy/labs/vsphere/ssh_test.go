package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/crypto/ssh"
)

func signer(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func line(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }

// userdata is what the product writes, as far as logins go.
func userdata(ca ssh.PublicKey, static, revokedURL string) []byte {
	files := []map[string]string{}
	file := func(path, content string) { files = append(files, map[string]string{"path": path, "content": content}) }
	conf := "PasswordAuthentication no\n"
	if ca != nil {
		conf += "TrustedUserCAKeys /etc/ssh/tenantry/ca.pub\nRevokedKeys /etc/ssh/tenantry/revoked\n"
		file("/etc/ssh/tenantry/ca.pub", line(ca)+"\n")
		file("/etc/ssh/tenantry/principals/tenant", "machine-1\n")
		file("/etc/ssh/tenantry/revoked", "")
		if revokedURL == "" {
			conf += "AuthorizedPrincipalsFile /etc/ssh/tenantry/principals/%u\n"
		} else {
			conf += "AuthorizedPrincipalsCommand /usr/local/lib/tenantry/ssh-principals " + revokedURL +
				" /etc/ssh/tenantry/principals/%u %s\nAuthorizedPrincipalsCommandUser nobody\n"
		}
	}
	file("/etc/ssh/sshd_config.d/10-tenantry.conf", conf)
	user := map[string]any{"name": "tenant"}
	if static != "" {
		user["ssh_authorized_keys"] = []string{static}
	}
	text, _ := json.Marshal(map[string]any{"users": []any{user}, "write_files": files})
	return append([]byte("#cloud-config\n"), text...)
}

func vmWith(t *testing.T, data []byte) *simulator.VirtualMachine {
	t.Helper()
	vm := &simulator.VirtualMachine{}
	vm.Name, vm.Self = "tn-vm-1", ref{Type: "VirtualMachine", Value: "vm-1"}
	vm.Config = &types.VirtualMachineConfigInfo{Uuid: "u1", ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: "guestinfo.userdata", Value: string(data)},
		&types.OptionValue{Key: "guestinfo.metadata", Value: `{"local-hostname": "box"}`},
	}}
	vm.Config.Hardware.Device = []types.BaseVirtualDevice{&types.VirtualPCIPassthrough{VirtualDevice: types.VirtualDevice{
		Key: 13000, Backing: &types.VirtualPCIPassthroughVmiopBackingInfo{Vgpu: "nvidia_h100xm-3-40c"}}}}
	return vm
}

// booting starts the server of a VM and returns its address, "" where there is none.
func booting(t *testing.T, s *SSHServers, data []byte) string {
	t.Helper()
	t.Cleanup(s.Close)
	changes := s.With(func(*simulator.VirtualMachine) []types.PropertyChange { return nil },
		func(ref, string, string, string) {})(vmWith(t, data))
	for _, change := range changes {
		for _, one := range change.Val.([]types.BaseOptionValue) {
			if one.GetOptionValue().Key == sshKey {
				return one.GetOptionValue().Value.(string)
			}
		}
	}
	return ""
}

type shape func(*ssh.Certificate)

func certified(t *testing.T, ca, key ssh.Signer, change shape) ssh.Signer {
	t.Helper()
	now := time.Now()
	certificate := &ssh.Certificate{Key: key.PublicKey(), Serial: 7, CertType: ssh.UserCert, KeyId: "who",
		ValidPrincipals: []string{"machine-1"}, ValidAfter: uint64(now.Add(-time.Minute).Unix()),
		ValidBefore: uint64(now.Add(time.Minute).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}}}
	if change != nil {
		change(certificate)
	}
	if err := certificate.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	made, err := ssh.NewCertSigner(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func login(t *testing.T, address, user string, with ssh.Signer) (*ssh.Client, error) {
	t.Helper()
	client, err := ssh.Dial("tcp", address, &ssh.ClientConfig{User: user, Timeout: 5 * time.Second,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(with)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err == nil {
		t.Cleanup(func() { _ = client.Close() })
	}
	return client, err
}

func TestACertificateOfTheCAOpensItsMachine(t *testing.T) {
	ca := signer(t)
	address := booting(t, newSSHServers(), userdata(ca.PublicKey(), "", ""))
	client, err := login(t, address, "tenant", certified(t, ca, signer(t), nil))
	if err != nil {
		t.Fatal(err)
	}
	for command, wanted := range map[string]string{
		"hostname": "box\n", "nvidia-smi -L": "GPU 0: NVIDIA H100XM-3-40C (UUID: GPU-u1-13000) [simulated]\n",
		"uname -a": "Linux box (simulated VM tn-vm-1)\n",
	} {
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := session.Output(command); err != nil || string(out) != wanted {
			t.Errorf("%s: %q, %v", command, out, err)
		}
	}
	session, _ := client.NewSession()
	if out, err := session.Output("rm -rf /"); err == nil || !strings.Contains(string(out), "simulated VM tn-vm-1") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestAShellIsPlayed(t *testing.T) {
	ca := signer(t)
	address := booting(t, newSSHServers(), userdata(ca.PublicKey(), "", ""))
	client, err := login(t, address, "tenant", certified(t, ca, signer(t), nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, terminal := range []bool{false, true} {
		session, _ := client.NewSession()
		session.Stdin = strings.NewReader("hostname\rexit\r")
		if !terminal {
			session.Stdin = strings.NewReader("hostname\nexit\n")
		} else if err := session.RequestPty("xterm", 24, 80, nil); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		session.Stdout = &out
		if err := session.Shell(); err != nil {
			t.Fatal(err)
		}
		if err := session.Wait(); err != nil || !strings.Contains(out.String(), "simulated VM tn-vm-1") ||
			!strings.Contains(out.String(), "box") {
			t.Errorf("terminal %v: %q, %v", terminal, out.String(), err)
		}
	}
}

func TestEverythingElseIsRefused(t *testing.T) {
	ca, other, key := signer(t), signer(t), signer(t)
	address := booting(t, newSSHServers(), userdata(ca.PublicKey(), "", ""))
	now := time.Now()
	for name, with := range map[string]ssh.Signer{
		"a bare key":         key,
		"another CA":         certified(t, other, key, nil),
		"another machine":    certified(t, ca, key, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"machine-2"} }),
		"for everybody":      certified(t, ca, key, func(c *ssh.Certificate) { c.ValidPrincipals = nil }),
		"over":               certified(t, ca, key, func(c *ssh.Certificate) { c.ValidBefore = uint64(now.Add(-time.Second).Unix()) }),
		"not yet":            certified(t, ca, key, func(c *ssh.Certificate) { c.ValidAfter = uint64(now.Add(time.Hour).Unix()) }),
		"of a host":          certified(t, ca, key, func(c *ssh.Certificate) { c.CertType = ssh.HostCert }),
		"an unknown demand":  certified(t, ca, key, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"x": "y"} }),
		"the CA's own key":   ca,
		"signed by its like": certified(t, key, key, nil),
	} {
		if _, err := login(t, address, "tenant", with); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	if _, err := login(t, address, "root", certified(t, ca, key, nil)); err == nil {
		t.Error("root was let in")
	}
}

func TestACertificateThatWasTakenBackIsRefusedAndACertificateWithoutAnAnswerIsNot(t *testing.T) {
	ca := signer(t)
	gone := "serial: 8\n"
	home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, gone) }))
	address := booting(t, newSSHServers(), userdata(ca.PublicKey(), "", home.URL+"/revoked"))
	with := certified(t, ca, signer(t), nil)

	if _, err := login(t, address, "tenant", with); err != nil {
		t.Fatal(err)
	}
	gone = "serial: 7\nserial: 8\n"
	if _, err := login(t, address, "tenant", with); err == nil {
		t.Error("it was taken back and opens")
	}
	home.Close()
	if _, err := login(t, address, "tenant", with); err != nil {
		t.Errorf("the control plane is away: %v", err)
	}
}

func TestStaticKeysOpenWhatTheyStandIn(t *testing.T) {
	key := signer(t)
	address := booting(t, newSSHServers(), userdata(nil, line(key.PublicKey())+" me@laptop", ""))
	if _, err := login(t, address, "tenant", key); err != nil {
		t.Error(err)
	}
	if _, err := login(t, address, "tenant", signer(t)); err == nil {
		t.Error("another key was let in")
	}
}

func TestNothingIsForwarded(t *testing.T) {
	key := signer(t)
	address := booting(t, newSSHServers(), userdata(nil, line(key.PublicKey()), ""))
	client, err := login(t, address, "tenant", key)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := client.Dial("tcp", address); err == nil {
		_ = conn.Close()
		t.Error("forwarded")
	}
}

func TestAServerEndsWithItsMachineAndKeepsItsHostKey(t *testing.T) {
	key := signer(t)
	servers := newSSHServers()
	data := userdata(nil, line(key.PublicKey()), "")
	seen := map[string]bool{}
	config := &ssh.ClientConfig{User: "tenant", Timeout: 5 * time.Second, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}}
	config.HostKeyCallback = ssh.HostKeyCallback(func(_ string, _ net.Addr, host ssh.PublicKey) error {
		seen[line(host)] = true
		return nil
	})
	for range 2 {
		address := booting(t, servers, data)
		client, err := ssh.Dial("tcp", address, config)
		if err != nil {
			t.Fatal(err)
		}
		servers.Stop(ref{Type: "VirtualMachine", Value: "vm-1"})
		if err := client.Wait(); err == nil {
			t.Error("a session outlived its machine")
		}
		if _, err := ssh.Dial("tcp", address, config); err == nil {
			t.Error("it answers after its end")
		}
	}
	if len(seen) != 1 {
		t.Errorf("%d host keys", len(seen))
	}
}

func TestUserDataThatLetsNobodyInStartsNothing(t *testing.T) {
	for name, data := range map[string][]byte{
		"none": nil, "no cloud-config": []byte("#!/bin/sh\n"), "no account": []byte("#cloud-config\n{}"),
		"no JSON": []byte("#cloud-config\nusers: []\n"), "no revoked file": []byte(`#cloud-config
{"users": [{"name": "tenant"}], "write_files": [{"path": "/etc/ssh/sshd_config.d/1.conf", "content": "RevokedKeys /x\n"}]}`),
	} {
		if address := booting(t, newSSHServers(), data); address != "" {
			t.Errorf("%s: %s", name, address)
		}
	}
}
