package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// ControlPath is where tests tell the lab what should go wrong, and ask it for the truth.
const ControlPath = "/_lab/"

// control serves the control address; `may` says whose calls are heard.
func control(l *Lab, may func(*http.Request) bool) http.Handler {
	mux := http.NewServeMux()
	on := func(pattern string, do func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := do(r)
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				answer = map[string]string{"error": err.Error()}
			}
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	on("GET /_lab/health", func(*http.Request) (any, error) { return map[string]bool{"ready": true}, nil })
	on("GET /_lab/inventory", func(*http.Request) (any, error) { return inventoryOf(l.reg) })
	on("GET /_lab/gpus", func(*http.Request) (any, error) { return l.estate.Truth(), nil })
	on("GET /_lab/rules", func(*http.Request) (any, error) { return l.rules.List(), nil })
	on("POST /_lab/rules", func(r *http.Request) (any, error) {
		var rule Rule
		if err := read(r, &rule); err != nil {
			return nil, err
		}
		return l.rules.Add(rule)
	})
	on("DELETE /_lab/rules", func(r *http.Request) (any, error) {
		id, err := 0, error(nil)
		if given := r.URL.Query().Get("id"); given != "" {
			id, err = strconv.Atoi(given)
		}
		if err == nil {
			l.rules.Delete(id)
		}
		return l.rules.List(), err
	})
	on("POST /_lab/policy", func(r *http.Request) (any, error) {
		var given struct {
			Policy string `json:"policy"`
		}
		if err := read(r, &given); err != nil {
			return nil, err
		}
		return given, l.estate.SetPolicy(given.Policy)
	})
	on("GET /_lab/guests", func(*http.Request) (any, error) { return l.guests.List(), nil })
	on("POST /_lab/guestinfo", func(r *http.Request) (any, error) {
		var given struct {
			ID    string `json:"id"`
			Key   string `json:"key"`
			Value string `json:"value"`
		}
		if err := read(r, &given); err != nil {
			return nil, err
		}
		return map[string]bool{"set": true}, l.guests.Set(given.ID, given.Key, given.Value)
	})
	on("POST /_lab/guests", func(r *http.Request) (any, error) {
		var given struct {
			Boot bool `json:"boot"`
		}
		err := read(r, &given)
		if err == nil {
			l.guests.boot.Store(given.Boot)
		}
		return given, err
	})
	on("POST /_lab/rights", func(r *http.Request) (any, error) {
		var given struct {
			Denied []string `json:"denied"`
		}
		err := read(r, &given)
		if err == nil {
			l.rights.Deny(given.Denied)
		}
		return given, err
	})
	on("GET /_lab/calls", func(*http.Request) (any, error) { return l.calls.Counts(), nil })
	on("DELETE /_lab/calls", func(*http.Request) (any, error) {
		l.calls.Forget()
		return l.calls.Counts(), nil
	})
	on("POST /_lab/references", func(*http.Request) (any, error) {
		return map[string]int64{"rebuilt": l.references.Rebuild()}, nil
	})
	on("GET /_lab/sessions", func(*http.Request) (any, error) { return l.sessions(), nil })
	on("DELETE /_lab/sessions", func(r *http.Request) (any, error) { return l.endSessions(r.URL.Query().Get("user")) })
	on("POST /_lab/vms", func(r *http.Request) (any, error) {
		var given ForeignVM
		if err := read(r, &given); err != nil {
			return nil, err
		}
		return given, l.furnisher.Foreign(r.Context(), given)
	})
	on("DELETE /_lab/vms", func(r *http.Request) (any, error) {
		return map[string]bool{"gone": true}, l.furnisher.RemoveForeign(r.Context(), r.URL.Query().Get("name"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !may(r) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func read(r *http.Request, into any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

// Session is one login, without its secret.
type Session struct {
	User  string `json:"user"`
	Calls int64  `json:"calls"`
	key   string
}

// manager is the session manager as one session would see it: with the list of all.
func (l *Lab) manager() (*simulator.SessionManager, *simulator.Context) {
	session := &simulator.Session{Registry: simulator.NewRegistry(), Map: l.reg}
	ctx := &simulator.Context{Context: context.Background(), Session: session, Map: l.reg}
	return session.Get(l.reg.SessionManager().Self).(*simulator.SessionManager), ctx
}

func (l *Lab) sessions() []Session {
	manager, _ := l.manager()
	list := []Session{}
	for _, s := range manager.SessionList {
		list = append(list, Session{User: s.UserName, Calls: s.CallCount, key: s.Key})
	}
	return list
}

// endSessions ends the sessions of a user, or all: what an idle time-out does to a client.
func (l *Lab) endSessions(user string) (any, error) {
	manager, ctx := l.manager()
	ended := 0
	for _, s := range l.sessions() {
		if user != "" && user != s.User {
			continue
		}
		request := &types.TerminateSession{This: manager.Self, SessionId: []string{s.key}}
		if fault := manager.TerminateSession(ctx, request).Fault(); fault != nil {
			if _, gone := fault.VimFault().(*types.NotFound); !gone {
				return nil, fmt.Errorf("session of %s: %v", s.User, fault.VimFault())
			}
			continue
		}
		ended++
	}
	return map[string]int{"ended": ended}, nil
}
