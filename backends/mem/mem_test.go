package mem_test

import (
	"errors"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

// bare has the five methods of a backend and no capability.
type bare struct{ backends.Backend }

func TestConformance(t *testing.T) {
	everything := func(r *mem.Registry) backends.Backend { return r }
	for name, test := range map[string]struct {
		o    mem.Options
		make func(r *mem.Registry) backends.Backend
	}{
		"everything": {mem.Options{}, everything},
		"tells little, lower case": {
			mem.Options{NoSize: true, NoDigest: true, Sparse: true, LowerCase: true},
			everything,
		},
		"no capability": {mem.Options{}, func(r *mem.Registry) backends.Backend { return bare{r} }},
	} {
		t.Run(name, func(t *testing.T) {
			h := backendtest.Harness{New: func(testing.TB) backendtest.Store { return store(mem.New(test.o), test.make) }}
			if test.o.LowerCase {
				h.Fits = lower
			}
			backendtest.Run(t, h)
		})
	}
}

func lower(ref backends.Ref) bool {
	for _, c := range ref.String() {
		if c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return true
}

func store(r *mem.Registry, make func(*mem.Registry) backends.Backend) backendtest.Store {
	found := func(ok bool) error {
		if !ok {
			return errors.New("not there")
		}
		return nil
	}
	return backendtest.Store{
		Backend: make(r),
		Seed:    func(ref backends.Ref, data []byte) error { r.Put(ref, data); return nil },
		Remove:  func(ref backends.Ref) error { return found(r.Remove(ref)) },
		Freeze:  func(ref backends.Ref) error { return found(r.Freeze(ref, true)) },
		Reopen:  func(testing.TB) backends.Backend { return make(r) },
	}
}

func TestSetHidesCapabilities(t *testing.T) {
	s := mem.New(mem.Options{NoRanges: true, NoPush: true, NoDelete: true, NoMove: true, NoTree: true, MinListAge: 5}).Set()
	if s.Ranges != nil || s.Pusher != nil || s.Deleter != nil || s.Mover != nil || s.Tree != nil || s.MinListAge != 5 {
		t.Errorf("%+v", s)
	}
	s = mem.New(mem.Options{}).Set()
	if s.Ranges == nil || s.Pusher == nil || s.Deleter == nil || s.Mover == nil || s.Tree == nil {
		t.Errorf("%+v", s)
	}
}
