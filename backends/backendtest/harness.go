package backendtest

import (
	"fmt"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
)

// Harness lets the suite reach one kind of registry.
type Harness struct {
	// New makes an empty registry and a backend for it. It is called once
	// for each part, and what it starts ends with t.Cleanup. Limits on
	// requests and downloads are off.
	New func(t testing.TB) Store

	// Fits reports whether the registry can hold an image of this name,
	// spelled so. The suite leaves out the names that do not fit; at least plain
	// names (lower-case letters, digits, "-" in the image and "." in the tag, one
	// level of collection) must. nil: every name that passes Ref.Check fits.
	Fits func(ref backends.Ref) bool

	// DeleteBroken says why deletes of this registry are known to have no
	// effect. Then a delete has to fail, and the image has to stay.
	DeleteBroken string
}

// Store is an empty registry with a backend for it.
type Store struct {
	// Backend is what is tested; the suite closes it.
	Backend backends.Backend

	// Seed puts an image into the registry, not through Backend. Over an existing
	// one it replaces all of it in one step and changes its version, if the
	// bytes differ. nil: the suite pushes. data does not change afterwards.
	Seed func(ref backends.Ref, data []byte) error
	// Remove takes an image away, not through Backend; nil: not tested.
	Remove func(ref backends.Ref) error
	// Freeze protects an image from change; nil: not tested.
	Freeze func(ref backends.Ref) error
	// Reopen makes another backend for the same registry, as a later process
	// would; the suite closes it. nil: not tested.
	Reopen func(t testing.TB) backends.Backend
	// Requests counts the requests the registry got so far; nil: not tested.
	Requests func() int

	// Secrets are the credentials that were planted in the backend's settings
	// and in the registry's answers. None may be seen in an error or a record.
	Secrets []string
	// Log gives what the backend has logged; nil: not tested.
	Log func() string
}

// part is one part of the suite. lacks names the capability that it needs and
// s has not, or is "".
type part struct {
	name  string
	lacks func(s *session) string
	run   func(s *session)
}

func parts() []part {
	nothing := func(*session) string { return "" }
	needs := func(has func(s *session) bool, what string) func(*session) string {
		return func(s *session) string {
			if has(s) {
				return ""
			}
			return what
		}
	}
	ranges := needs(func(s *session) bool { return s.set.Ranges != nil }, "backends.RangeOpener")
	push := needs(func(s *session) bool { return s.set.Pusher != nil }, "backends.Pusher")
	del := needs(func(s *session) bool { return s.set.Deleter != nil }, "backends.Deleter")
	move := needs(func(s *session) bool { return s.set.Mover != nil }, "backends.Mover")
	local := needs(func(s *session) bool { return s.set.Local != nil }, "backends.LocalOpener")
	tree := needs(func(s *session) bool { return s.set.Tree != nil }, "backends.TreeLister")
	frozen := needs(func(s *session) bool { return s.store.Freeze != nil }, "Store.Freeze")
	reopen := needs(func(s *session) bool { return s.store.Reopen != nil }, "Store.Reopen")
	return []part{
		{"Listing", nothing, testListing},
		{"Paging", nothing, testPaging},
		{"Tree", tree, testTree},
		{"Absent", nothing, testAbsent},
		{"Names", nothing, testNames},
		{"Records", nothing, testRecords},
		{"Whole", nothing, testWhole},
		{"Ranges", ranges, testRanges},
		{"Local", local, testLocal},
		{"Stale", nothing, testStale},
		{"Cancel", nothing, testCancel},
		{"Reopen", reopen, testReopen},
		{"Push", push, testPush},
		{"PushBroken", push, testPushBroken},
		{"PushCancel", push, testPushCancel},
		{"Frozen", frozen, testFrozen},
		{"Delete", del, testDelete},
		{"Move", move, testMove},
		{"Concurrent", nothing, testConcurrent},
	}
}

// Run tests that a kind of registry keeps the promises of package backends.
// A part is left out only if it needs a capability that backends.Probe does
// not find, or that the harness does not offer; the log of Capabilities names it.
func Run(t *testing.T, h Harness) {
	var run []part
	t.Run("Capabilities", func(t *testing.T) {
		s := newSession(t, h, backends.Probe)
		for _, p := range parts() {
			if what := p.lacks(s); what != "" {
				t.Logf("%s is left out: there is no %s", p.name, what)
				continue
			}
			run = append(run, p)
		}
	})
	for _, p := range run {
		t.Run(p.name, func(t *testing.T) { p.run(newSession(t, h, backends.Probe)) })
	}
}

// plain is the sort of names that every registry has to fit: the nth image of
// the suite, in one of a few collections.
func plain(n int) backends.Ref {
	return backends.Ref{Collection: fmt.Sprintf("lab-%d", n%3), Image: fmt.Sprintf("tool-%d", n), Tag: fmt.Sprintf("1.%d", n)}
}
