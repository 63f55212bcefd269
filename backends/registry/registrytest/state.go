package registrytest

import (
	"crypto/md5" // the registry's own identifier
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

type collection struct {
	id      int
	name    string
	secret  string
	private bool
	owners  []string
	viewers []string
	added   time.Time
	changed time.Time
	gets    int
}

type container struct {
	id         int
	collection *collection
	name, tag  string
	version    *string
	file       string // "" stands for a row without an image
	frozen     bool
	metadata   map[string]any
	saved      time.Time // add_date: moves on every save
	gets       int
}

type state struct {
	collections []*collection
	containers  []*container
	lastID      int
	lastColl    int
	pending     []int // containers whose sha256 the worker has yet to compute
}

// Image describes a container to seed, or one that is there.
type Image struct {
	Collection, Name, Tag string
	ID                    int
	Version               string // seed: "" means the sha256, "-" means null
	Frozen                bool
	Metadata              map[string]any
	File                  string // path of its bytes on this machine
}

// Add stores an image without any request, replacing one of the same name and
// making the collection (owned by nobody) as needed. Names are stored as given.
func (s *Server) Add(img Image, body io.Reader) (Image, error) {
	tmp, md5hex, sha, err := s.spool(body)
	if err != nil {
		return Image{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.findCollection(img.Collection)
	if c == nil {
		c = s.newCollection(img.Collection)
	}
	path, err := s.place(c, tmp, img.Name, img.Tag, md5hex)
	if err != nil {
		return Image{}, err
	}
	version := "sha256." + sha
	switch img.Version {
	case "":
	case "md5":
		version = md5hex
	default:
		version = img.Version
	}
	if old := s.find(img.Collection, img.Name, img.Tag); old != nil {
		if old.file != path {
			_ = os.Remove(old.file) // may be gone already
		}
		s.drop(old)
	}
	k := s.newContainer(c, img.Name, img.Tag, version, path)
	if img.Version == "-" {
		k.version = nil
	}
	k.frozen, k.metadata = img.Frozen, img.Metadata
	return k.image(), nil
}

// Get describes the image stored under the exact names.
func (s *Server) Get(coll, name, tag string) (Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.find(coll, name, tag); k != nil {
		return k.image(), true
	}
	return Image{}, false
}

// Remove takes an image away, as the web page does.
func (s *Server) Remove(coll, name, tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.find(coll, name, tag); k != nil {
		_ = os.Remove(k.file) // may be gone already
		s.drop(k)
	}
}

// Freeze sets or clears an image's protection.
func (s *Server) Freeze(coll, name, tag string, frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.find(coll, name, tag); k != nil {
		k.frozen = frozen
	}
}

// MakeCollection makes a collection with these owners, or changes its owners.
func (s *Server) MakeCollection(name string, private bool, owners ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.findCollection(name)
	if c == nil {
		c = s.newCollection(name)
	}
	c.private, c.owners = private, owners
}

// Secret gives the word that opens a collection's downloads, for tests that look for
// it where it must not be.
func (s *Server) Secret(coll string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.findCollection(coll); c != nil {
		return c.secret
	}
	return ""
}

// RotateSecret gives a collection a new secret.
func (s *Server) RotateSecret(coll string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.findCollection(coll); c != nil {
		c.secret = uuid4()
	}
}

// RunWorker computes the sha256 versions that are waiting.
func (s *Server) RunWorker() {
	s.mu.Lock()
	pending := s.state.pending
	s.state.pending = nil
	s.mu.Unlock()
	for _, id := range pending {
		s.mu.Lock()
		k := s.byID(id)
		s.mu.Unlock()
		if k == nil {
			continue
		}
		f, err := os.Open(k.file)
		if err != nil {
			continue // the worker's job fails, the md5 stays
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			continue
		}
		v := "sha256." + hex.EncodeToString(h.Sum(nil))
		s.mu.Lock()
		k.version, k.saved = &v, s.opt.Now()
		s.mu.Unlock()
	}
}

func (k *container) image() Image {
	v := "-"
	if k.version != nil {
		v = *k.version
	}
	return Image{
		Collection: k.collection.name, Name: k.name, Tag: k.tag, ID: k.id,
		Version: v, Frozen: k.frozen, Metadata: k.metadata, File: k.file,
	}
}

// spool writes body to the upload folder and gives its md5 and sha256.
func (s *Server) spool(body io.Reader) (path, md5hex, shahex string, err error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "_upload"), "")
	if err != nil {
		return "", "", "", err
	}
	m, h := md5.New(), sha256.New()
	_, err = io.Copy(io.MultiWriter(f, m, h), body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the write's error is the one to tell
		return "", "", "", err
	}
	sum := func(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
	return f.Name(), sum(m), sum(h), nil
}

// place moves an upload to where the server keeps it: a path made of name, tag
// and md5, so that the same bytes under the same tag share one file.
func (s *Server) place(c *collection, tmp, name, tag, md5hex string) (string, error) {
	dir := filepath.Join(s.dir, filepath.FromSlash(c.name))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, storageName(name, tag, md5hex))
	return path, os.Rename(tmp, path)
}

func storageName(name, tag, md5hex string) string {
	return fmt.Sprintf("%s:%s@%s.sif", filepath.Base(name), tag, md5hex)
}

// The functions below are called with mu held.

func (s *Server) newCollection(name string) *collection {
	s.state.lastColl++
	now := s.opt.Now()
	c := &collection{id: s.state.lastColl, name: name, secret: uuid4(), added: now, changed: now}
	s.state.collections = append(s.state.collections, c)
	return c
}

func (s *Server) newContainer(c *collection, name, tag, version, path string) *container {
	s.state.lastID++
	k := &container{id: s.state.lastID, collection: c, name: name, tag: tag, version: &version, file: path, saved: s.opt.Now()}
	s.state.containers = append(s.state.containers, k)
	c.changed = k.saved
	return k
}

func (s *Server) drop(k *container) {
	s.state.containers = slices.DeleteFunc(s.state.containers, func(x *container) bool { return x == k })
}

func (s *Server) findCollection(name string) *collection {
	for _, c := range s.state.collections {
		if c.name == name {
			return c
		}
	}
	return nil
}

func (s *Server) find(coll, name, tag string) *container {
	for _, k := range s.state.containers {
		if k.collection.name == coll && k.name == name && k.tag == tag {
			return k
		}
	}
	return nil
}

func (s *Server) byID(id int) *container {
	for _, k := range s.state.containers {
		if k.id == id {
			return k
		}
	}
	return nil
}

var (
	notAlnum  = regexp.MustCompile(`[^0-9a-zA-Z]+`)
	extension = regexp.MustCompile(`[.](img|simg|sif)`)
)

// formatCollection is the server's format_collection_name.
func formatCollection(s string) string {
	return strings.ToLower(strings.Trim(notAlnum.ReplaceAllString(s, "-"), "-"))
}

// parseImage is the part of the server's parse_image_name that "name:tag" meets.
func parseImage(s string) (name, tag string, ok bool) {
	s = extension.ReplaceAllString(s, "")
	if strings.Contains(s, "@") || strings.Contains(s, "/") || strings.Count(s, ":") > 1 {
		return "", "", false
	}
	name, tag, _ = strings.Cut(s, ":")
	if tag == "" {
		tag = "latest"
	}
	return strings.ToLower(name), strings.ToLower(tag), name != ""
}

func uuid4() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
