package backendtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// patience bounds what one part may take, and soon what a call may take whose
// context is over.
const (
	patience = 2 * time.Minute
	soon     = 10 * time.Second
)

// session is one part's run on one fresh store. Everything the backend
// answers passes by it, so that every error and every record is looked at.
type session struct {
	testing.TB
	h     Harness
	store Store
	set   backends.Set
	ctx   context.Context

	mu   sync.Mutex
	seen strings.Builder // every error and record, as text
}

// newSession makes the store; probe finds the capabilities.
func newSession(t testing.TB, h Harness, probe func(backends.Backend) backends.Set) *session {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s := &session{TB: t, h: h, store: h.New(t), ctx: ctx}
	s.set = s.watch(probe(s.store.Backend))
	if s.store.Seed == nil && s.set.Pusher == nil {
		t.Fatal("the harness offers neither Seed nor a backend that pushes")
	}
	t.Cleanup(func() {
		if err := s.set.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		s.checkSecrets()
	})
	return s
}

// watch forwards set; every error and every record is checked and kept.
func (s *session) watch(set backends.Set) backends.Set {
	return wrap(set, func(m Method, ref backends.Ref) call { return watched{s: s, m: m, ref: ref} })
}

type watched struct {
	s   *session
	m   Method
	ref backends.Ref
}

func (watched) before(context.Context) error { return nil }

func (w watched) item(_ context.Context, rec backends.Record) error {
	w.s.sawRecord(rec)
	return nil
}

func (w watched) read(_ context.Context, _ []byte, _ int64, n int, err error) (int, error) {
	if err != nil && err != io.EOF && w.m != Push {
		w.s.sawError(w.m, w.ref, err)
	}
	return n, err
}

func (w watched) after(_ context.Context, rec backends.Record, err error) error {
	if err != nil {
		w.s.sawError(w.m, w.ref, err)
	} else {
		w.s.sawRecord(rec)
	}
	return err
}

func (s *session) sawError(m Method, ref backends.Ref, err error) {
	if backends.KindOf(err) == backends.Other && !errors.Is(err, context.Canceled) && !errors.Is(err, errSource) {
		s.Errorf("%s %v: the error has no kind: %v", m, ref, err)
	}
	s.saw(fmt.Sprint(err), fmt.Sprintf("%+v", err), backends.HintOf(err))
}

func (s *session) sawRecord(rec backends.Record) {
	text, err := json.Marshal(rec)
	if err != nil {
		s.Errorf("record of %v: %v", rec.Ref, err)
	}
	s.saw(string(text), fmt.Sprint(rec))
}

func (s *session) saw(texts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range texts {
		s.seen.WriteString(text + "\n")
	}
}

// checkSecrets fails the test if a secret was seen, without showing it.
func (s *session) checkSecrets() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var log string
	if s.store.Log != nil {
		log = s.store.Log()
	}
	for i, secret := range s.store.Secrets {
		if strings.Contains(s.seen.String(), secret) {
			s.Errorf("secret %d was seen in an error or a record", i+1)
		}
		if strings.Contains(log, secret) {
			s.Errorf("secret %d was seen in the log", i+1)
		}
	}
}

// fits reports whether the registry can hold ref.
func (s *session) fits(ref backends.Ref) bool {
	return ref.Check() == nil && (s.h.Fits == nil || s.h.Fits(ref))
}

// seed puts an image into the registry and fails the test if it cannot.
func (s *session) seed(ref backends.Ref, data []byte) {
	s.Helper()
	if err := s.trySeed(ref, data); err != nil {
		s.Fatalf("seeding %v: %v", ref, err)
	}
}

func (s *session) trySeed(ref backends.Ref, data []byte) error {
	if s.store.Seed != nil {
		return s.store.Seed(ref, data)
	}
	_, err := s.set.Pusher.Push(s.ctx, ref, newSource(data), nil)
	return err
}

// stat gives the full record of an image that is there, checked.
func (s *session) stat(ref backends.Ref) backends.Record {
	s.Helper()
	rec, err := s.set.Stat(s.ctx, ref)
	if err != nil {
		s.Fatalf("Stat %v: %v", ref, err)
	}
	s.checkRecord(rec, ref)
	if !rec.Full {
		s.Errorf("Stat %v: the record is not full", ref)
	}
	return rec
}

func (s *session) checkRecord(rec backends.Record, ref backends.Ref) {
	s.Helper()
	if rec.Ref != ref {
		s.Errorf("record of %q has the ref %q", ref, rec.Ref)
	}
	if rec.Version == "" {
		s.Errorf("record of %v has no version", ref)
	}
	if rec.Size < backends.UnknownSize {
		s.Errorf("record of %v has the size %d", ref, rec.Size)
	}
}

// checkBytes compares what a record tells of its bytes with the bytes.
func (s *session) checkBytes(rec backends.Record, data []byte) {
	s.Helper()
	if rec.Size != backends.UnknownSize && rec.Size != int64(len(data)) {
		s.Errorf("record of %v has size %d, the image %d bytes", rec.Ref, rec.Size, len(data))
	}
	s.checkDigest(rec.Ref, rec.Digest, data)
}

func (s *session) checkDigest(ref backends.Ref, d backends.Digest, data []byte) {
	s.Helper()
	h := d.NewHash()
	if h == nil {
		return
	}
	h.Write(data)
	if want, _ := backends.NewDigest(d.Algorithm, fmt.Sprintf("%x", h.Sum(nil))); d != want {
		s.Errorf("%v: digest %v is told, the bytes have %v", ref, d, want)
	}
}

// read opens an image, reads all of it and closes it.
func (s *session) read(rec backends.Record) ([]byte, error) {
	st, err := s.set.Open(s.ctx, rec)
	if err != nil {
		return nil, err
	}
	return drain(st)
}

func (s *session) readRange(rec backends.Record, off, n int64) ([]byte, error) {
	st, err := s.set.Ranges.OpenRange(s.ctx, rec, off, n)
	if err != nil {
		return nil, err
	}
	return drain(st)
}

func drain(st *backends.Stream) ([]byte, error) {
	data, err := io.ReadAll(st)
	if cerr := st.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("closing a stream at its end: %w", cerr)
	}
	return data, err
}

// holds checks that the registry has data under ref, by record, listing and
// bytes.
func (s *session) holds(ref backends.Ref, data []byte) backends.Record {
	s.Helper()
	rec := s.stat(ref)
	s.checkBytes(rec, data)
	got, err := s.read(rec)
	if err != nil {
		s.Fatalf("Open %v: %v", ref, err)
	}
	if !bytes.Equal(got, data) {
		s.Fatalf("Open %v: %s", ref, difference(got, data))
	}
	listed, ok := s.images(ref.Collection)[ref]
	if !ok {
		s.Errorf("Images %q does not list %v", ref.Collection, ref)
	} else if listed.Version != rec.Version {
		s.Errorf("%v: version %q in the listing, %q in the record", ref, listed.Version, rec.Version)
	}
	return rec
}

// gone checks that the registry has no ref, by record and listing.
func (s *session) gone(ref backends.Ref) {
	s.Helper()
	if _, err := s.set.Stat(s.ctx, ref); !errors.Is(err, backends.NotFound) {
		s.Errorf("Stat of absent %v gave %v, want not found", ref, err)
	}
	for rec, err := range s.set.Images(s.ctx, ref.Collection) {
		if err != nil && !errors.Is(err, backends.NotFound) { // its collection may be gone with it
			s.Errorf("Images %q: %v", ref.Collection, err)
		}
		if err == nil && rec.Ref == ref {
			s.Errorf("Images %q lists absent %v", ref.Collection, ref)
		}
	}
}

// images lists a collection and fails the test if that goes wrong.
func (s *session) images(collection string) map[backends.Ref]backends.Record {
	s.Helper()
	out := map[backends.Ref]backends.Record{}
	for rec, err := range s.set.Images(s.ctx, collection) {
		if err != nil {
			s.Fatalf("Images %q: %v", collection, err)
		}
		if rec.Collection != collection {
			s.Errorf("Images %q lists %v", collection, rec.Ref)
		}
		if _, twice := out[rec.Ref]; twice {
			s.Errorf("Images %q lists %v twice", collection, rec.Ref)
		}
		s.checkRecord(rec, rec.Ref)
		out[rec.Ref] = rec
	}
	return out
}

// collections lists the collections and fails the test if that goes wrong.
func (s *session) collections() map[string]bool {
	s.Helper()
	out := map[string]bool{}
	for name, err := range s.set.Collections(s.ctx) {
		if err != nil {
			s.Fatalf("Collections: %v", err)
		}
		if out[name] {
			s.Errorf("Collections lists %q twice", name)
		}
		out[name] = true
	}
	return out
}

// wantKind fails the test unless err is of one of the kinds.
func (s *session) wantKind(what string, err error, kinds ...backends.Kind) {
	s.Helper()
	for _, k := range kinds {
		if errors.Is(err, k) {
			return
		}
	}
	s.Errorf("%s gave %v, want %v", what, err, kinds)
}

// noise gives n bytes that are the same for the same seed only.
func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "noise %d", seed)))
	data := make([]byte, n)
	_, _ = r.Read(data) // never fails
	return data
}

// source is an image to push.
type source struct {
	*bytes.Reader
	digest backends.Digest
}

func newSource(data []byte) source {
	sum := sha256.Sum256(data)
	return source{Reader: bytes.NewReader(data), digest: backends.SHA256(sum[:])}
}

func (s source) Digest() backends.Digest { return s.digest }

// difference says where got is not want.
func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("%d bytes, of %d; wrong from byte %d", len(got), len(want), i)
		}
	}
	return fmt.Sprintf("%d bytes instead of %d", len(got), len(want))
}
