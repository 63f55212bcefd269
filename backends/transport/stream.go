package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// Stream asks for a whole body. Size is the Content-Length or UnknownSize;
// Validator is the strong ETag, if any. The context bounds the stream until it
// is closed. A body that ends early is Unavailable, one that stands still
// Timeout.
func (c *Client) Stream(ctx context.Context, r Request) (*backends.Stream, error) {
	var st *backends.Stream
	err := c.run(ctx, r, func(a *answer) *failure {
		if a.resp.StatusCode != http.StatusOK {
			a.close()
			return final(r, backends.Corrupt, fmt.Errorf("status %d instead of the whole content", a.resp.StatusCode))
		}
		if f := a.encoded(r); f != nil {
			a.close()
			return f
		}
		st = &backends.Stream{ReadCloser: a.body, Size: backends.UnknownSize, Validator: StrongETag(a.resp.Header)}
		if a.resp.ContentLength >= 0 {
			st.Size = a.resp.ContentLength
		}
		return nil
	})
	return st, err
}

// Range asks for exactly n bytes (n > 0) from off. validator pins the content:
// a strong ETag in its quotes, the Last-Modified header's own text, or empty for no
// pin. Size is that of the whole content, or UnknownSize; Validator is the
// strong ETag.
//
// Content that is no longer the validator's is Stale. An answer that is not a
// range, or does not say which content it is from, is Unsupported. Other
// bounds than those asked for are Corrupt.
func (c *Client) Range(ctx context.Context, r Request, off, n int64, validator string) (*backends.Stream, error) {
	if off < 0 || n <= 0 || off+n < off {
		return nil, final(r, backends.Invalid, fmt.Errorf("range of %d bytes at %d", n, off)).err
	}
	r.Header = r.Header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	pin := pinOf(validator)
	if pin.condition != "" {
		r.Header.Set(pin.condition, validator)
	}
	check := r.Check
	// Before the caller's own look at the header: what is checked here is
	// whether that header is about the right bytes at all.
	r.Check = func(status int, h http.Header) error {
		if f := ranged(r, status, h, off, n, pin, validator); f != nil {
			return f.err
		}
		if check != nil {
			return check(status, h)
		}
		return nil
	}
	var st *backends.Stream
	err := c.run(ctx, r, func(a *answer) *failure {
		if f := a.encoded(r); f != nil {
			a.close()
			return f
		}
		if got := a.resp.ContentLength; got >= 0 && got != n {
			a.close()
			return final(r, backends.Corrupt, fmt.Errorf("a range of %d bytes instead of %d", got, n))
		}
		a.body.expectExactly(n)
		_, _, total, _ := parseContentRange(a.resp.Header.Get("Content-Range"))
		st = &backends.Stream{ReadCloser: a.body, Size: total, Validator: StrongETag(a.resp.Header)}
		return nil
	})
	return st, err
}

// pin is how a validator is sent and where its answer stands.
type pin struct{ condition, header string }

func pinOf(validator string) pin {
	switch {
	case validator == "":
		return pin{}
	case strings.HasPrefix(validator, `"`):
		return pin{"If-Match", "ETag"}
	}
	return pin{"If-Unmodified-Since", "Last-Modified"}
}

// ranged tells what is wrong with the header of an answer to a range.
func ranged(r Request, status int, h http.Header, off, n int64, p pin, validator string) *failure {
	if p.header != "" {
		switch got := h.Get(p.header); got {
		case validator:
		case "":
			return final(r, backends.Unsupported, errors.New("the answer does not say which version it is from"))
		default:
			return final(r, backends.Stale, errors.New("the content has another "+p.header+" now"))
		}
	}
	if status != http.StatusPartialContent {
		return final(r, backends.Unsupported, errors.New("the server sends no ranges"))
	}
	first, last, total, ok := parseContentRange(h.Get("Content-Range"))
	if !ok || first != off || last != off+n-1 || (total >= 0 && last >= total) {
		return final(r, backends.Corrupt, fmt.Errorf("another range than the %d bytes at %d", n, off))
	}
	return nil
}

// StrongETag gives the ETag header with its quotes if it is a strong
// validator (equal means the same bytes), else "".
func StrongETag(h http.Header) string {
	tag := h.Get("ETag")
	if len(tag) < 3 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return ""
	}
	for _, b := range []byte(tag[1 : len(tag)-1]) {
		if b < '!' || b == '"' || b == 0x7f {
			return ""
		}
	}
	return tag
}

// body is a response's body under watch, with a length to keep. Reading is for
// one goroutine; Close may come from another.
type body struct {
	rc     io.ReadCloser
	w      *watch
	r      Request
	c      *Client
	left   int64 // bytes still promised; negative: not told
	err    error // what every further read returns
	waited time.Duration
	got    int64 // bytes in the present window
	once   sync.Once
}

func newBody(rc io.ReadCloser, w *watch, r Request, c *Client, length int64) *body {
	return &body{rc: rc, w: w, r: r, c: c, left: length}
}

func (b *body) expectExactly(n int64) { b.left = n }

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := b.w.ctx.Err(); err != nil { // what is buffered already would not notice
		b.err = b.c.broken(b.r, err, b.w).err
		_ = b.Close() // the error that matters is b.err
		return 0, b.err
	}
	if b.left == 0 {
		p = make([]byte, 1) // is there more than was promised?
	} else if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.w.expect(stall)
	began := b.c.now()
	n, err := b.rc.Read(p)
	b.w.pause()
	b.waited += b.c.now().Sub(began)
	b.got += int64(n)
	switch {
	case n > 0 && b.left == 0:
		n, b.err = 0, final(b.r, backends.Corrupt, errors.New("the body is longer than promised")).err
	case n > 0 && b.left > 0:
		b.left -= int64(n)
	}
	switch {
	case b.err != nil:
	case err == io.EOF && b.left > 0:
		b.err = b.c.broken(b.r, io.ErrUnexpectedEOF, b.w).err
	case err == io.EOF:
		b.err = io.EOF
	case err != nil:
		b.err = b.c.broken(b.r, err, b.w).err
	case b.dripping():
		b.err = final(b.r, backends.Timeout, errDrip).err
	}
	if b.err != nil && b.err != io.EOF {
		_ = b.Close() // the error that matters is b.err
	}
	if n > 0 && b.err != io.EOF {
		return n, nil // b.err comes with the next read
	}
	return n, b.err
}

// dripping tells at the end of each window whether it brought too little.
func (b *body) dripping() bool {
	if b.waited < dripWindow {
		return false
	}
	slow := float64(b.got)/b.waited.Seconds() < dripFloor/dripWindow.Seconds()
	b.waited, b.got = 0, 0
	return slow
}

// Close may be called at any time and more than once.
func (b *body) Close() error {
	b.once.Do(func() {
		b.w.end(errClosed)
		_ = b.rc.Close() // a closed connection tells nothing about the bytes read
	})
	return nil
}

var errClosed = errors.New("closed")
