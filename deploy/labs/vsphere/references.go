package main

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"sync/atomic"
)

// oneInventory is by how much every reference grows when the inventory is rebuilt.
const oneInventory = 1_000_000

// rootFolder is called so in every vCenter.
const rootFolder = "group-d1"

// References lets a vCenter come back with other references of the very same objects, as one does whose inventory was
// rebuilt: `vm-42` is `vm-1000042` from then on, and whoever still asks for `vm-42` is told that nothing is there.
//
// It works on the wire, both ways; inside, and at the control address, every object keeps the id that it had.
type References struct {
	rebuilt atomic.Int64
}

// referenceOf finds ids of the library's own making as the whole text of an element. Ids of the manager objects, which
// every vCenter has under the same names, and of sessions are not of this shape.
var referenceOf = regexp.MustCompile(`>((?:(?:vm|host|datastore|network|datacenter|dvportgroup|dvs|resgroup|resgroup-v|` +
	`snapshot|task)-|group-[a-z]?|domain-[cs]))(0?)([1-9][0-9]{0,8})<`)

// Rebuild gives every object another reference from the next call on; it returns how often that was done.
func (r *References) Rebuild() int64 { return r.rebuilt.Add(1) }

// Around wraps the simulator's HTTP side.
func (r *References) Around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, asked *http.Request) {
		shift := r.rebuilt.Load() * oneInventory
		if shift == 0 || asked.Method != http.MethodPost {
			next.ServeHTTP(w, asked)
			return
		}
		body, err := io.ReadAll(asked.Body)
		if err != nil {
			return
		}
		body = inside(body, shift)
		asked.Body, asked.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		asked.Header.Del("Accept-Encoding") // the answer has to be read
		answer := &kept{header: w.Header(), status: http.StatusOK}
		next.ServeHTTP(answer, asked)
		text := outside(answer.body.Bytes(), shift)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		w.WriteHeader(answer.status)
		_, _ = w.Write(text)
	})
}

// inside turns references as clients have them into the library's own; those of an earlier inventory into none.
func inside(body []byte, shift int64) []byte {
	return renumbered(body, func(_ string, number int64) string {
		if number < shift {
			return "0" + strconv.FormatInt(number, 10)
		}
		return strconv.FormatInt(number-shift, 10)
	})
}

// outside turns the library's own into those that clients have; one that is none is told as it was asked for.
func outside(body []byte, shift int64) []byte {
	return renumbered(body, func(zero string, number int64) string {
		if zero != "" {
			return strconv.FormatInt(number, 10)
		}
		return strconv.FormatInt(number+shift, 10)
	})
}

func renumbered(body []byte, say func(zero string, number int64) string) []byte {
	return referenceOf.ReplaceAllFunc(body, func(found []byte) []byte {
		part := referenceOf.FindSubmatch(found)
		number, err := strconv.ParseInt(string(part[3]), 10, 64)
		if err != nil || string(part[1])+string(part[3]) == rootFolder {
			return found
		}
		return []byte(">" + string(part[1]) + say(string(part[2]), number) + "<")
	})
}

// kept takes an answer until it is whole.
type kept struct {
	header http.Header
	body   bytes.Buffer
	status int
}

func (k *kept) Header() http.Header         { return k.header }
func (k *kept) Write(b []byte) (int, error) { return k.body.Write(b) }
func (k *kept) WriteHeader(status int)      { k.status = status }
