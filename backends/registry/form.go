package registry

import (
	"bytes"
	"context"
	"crypto/md5" // the registry's own identifier, not a defence
	"crypto/rand"
	"encoding/hex"
	"hash"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/sregistry/sregistry-fs/backends"
)

// form is the body of an upload: multipart/form-data of a length known before
// it is sent, since the server's web server takes no other. The file has to
// be called file1.
type form struct {
	boundary   string
	head, tail []byte
	ctx        context.Context // of the push
	src        backends.Source
	report     func(int64)

	mu   sync.Mutex // guards sent and hash: a transport may still read when the answer is there
	sent int64      // bytes of src read in order
	hash hash.Hash  // MD5 of those
}

func newForm(ctx context.Context, auth string, ref backends.Ref, cid int64, src backends.Source, report func(int64)) *form {
	f := &form{boundary: rand.Text() + rand.Text(), ctx: ctx, src: src, report: report}
	var head bytes.Buffer
	for _, field := range [][2]string{
		{"SREGISTRY_EVENT", auth},
		{"name", ref.Image},
		{"collection", strconv.FormatInt(cid, 10)},
		{"tag", ref.Tag},
	} {
		head.WriteString("--" + f.boundary + "\r\nContent-Disposition: form-data; name=\"" + field[0] + "\"\r\n\r\n" + field[1] + "\r\n")
	}
	name := strings.NewReplacer(`\`, "_", `"`, "_").Replace(ref.Image + ":" + ref.Tag + ".sif")
	head.WriteString("--" + f.boundary + "\r\nContent-Disposition: form-data; name=\"file1\"; filename=\"" + name + "\"\r\nContent-Type: text/plain\r\n\r\n")
	f.head = head.Bytes()
	f.tail = []byte("\r\n--" + f.boundary + "--\r\n")
	return f
}

func (f *form) contentType() string { return "multipart/form-data; boundary=" + f.boundary }

// length is that of the whole body in bytes.
func (f *form) length() int64 {
	return int64(len(f.head)) + f.src.Size() + int64(len(f.tail))
}

// open gives the body from its start.
func (f *form) open() (io.ReadCloser, error) {
	f.mu.Lock()
	f.sent, f.hash = 0, md5.New()
	f.mu.Unlock()
	return io.NopCloser(io.MultiReader(
		bytes.NewReader(f.head),
		&summing{f: f, r: io.NewSectionReader(f.src, 0, f.src.Size())},
		bytes.NewReader(f.tail),
	)), nil
}

// sum gives the MD5 of the source, if all of it was sent.
func (f *form) sum() (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hash == nil || f.sent != f.src.Size() {
		return "", false
	}
	return hex.EncodeToString(f.hash.Sum(nil)), true
}

type summing struct {
	f *form
	r io.Reader
}

func (s *summing) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if cerr := context.Cause(s.f.ctx); cerr != nil {
		// What is buffered on the way would arrive after all, and a push that
		// was given up would be stored behind its caller's back.
		return 0, cerr
	}
	s.f.mu.Lock()
	s.f.hash.Write(p[:n])
	s.f.sent += int64(n)
	sent := s.f.sent
	s.f.mu.Unlock()
	if n > 0 && s.f.report != nil {
		s.f.report(sent)
	}
	if err == io.EOF && sent != s.f.src.Size() {
		err = io.ErrUnexpectedEOF // the rest of the form must not follow
	}
	return n, err
}

// inMemory is the body of a small request.
func inMemory(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}
