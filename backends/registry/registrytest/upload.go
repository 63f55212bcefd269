package registrytest

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// push is the first step: who pushes, and into which collection. It is a plain
// view, so that every refusal is an exception.
func (s *Server) push(w http.ResponseWriter, r *http.Request) {
	if s.viewLimited(w, r, "push") {
		return
	}
	var body struct {
		Collection, Name string
		Tag              *string
	}
	if s.opt.PushDisabled || json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&body) != nil {
		serverError(w)
		return
	}
	tag := "latest"
	if body.Tag != nil {
		tag = *body.Tag
	}
	name := formatCollection(body.Collection)
	c, err := parseAuth(r.Header.Get("Authorization"))
	if err != nil || !s.valid(c, "push", name, body.Name, tag) {
		serverError(w)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	coll := s.findCollection(name)
	u, err := s.user(c.user)
	if err != nil || !s.mayPush(c, coll) || (s.opt.NoUserCollections && !u.Superuser) {
		serverError(w)
		return
	}
	if coll == nil {
		coll = s.newCollection(name)
		coll.private = s.opt.PrivateByDefault
		coll.owners = []string{u.Name}
	}
	writeJSON(w, http.StatusOK, map[string]int{"cid": coll.id})
}

// upload is nginx's upload module and the view it hands over to.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	kind, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type")) // no type is the wrong type
	switch {
	case r.Method != http.MethodPost:
		html(w, http.StatusMethodNotAllowed)
		return
	case kind != "multipart/form-data" || params["boundary"] == "":
		html(w, http.StatusUnsupportedMediaType)
		return
	case r.ContentLength < 0:
		html(w, http.StatusBadRequest)
		return
	case r.ContentLength > s.opt.MaxBody:
		html(w, http.StatusRequestEntityTooLarge)
		return
	}
	form := map[string]string{}
	var tmp, md5hex string
	parts := multipart.NewReader(&counted{r: r.Body, s: s}, params["boundary"])
	for {
		p, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err == nil && p.FormName() == "file1" {
			tmp, md5hex, _, err = s.spool(p)
		} else if err == nil {
			var text []byte
			text, err = io.ReadAll(io.LimitReader(p, 1<<16))
			form[p.FormName()] = string(text)
		}
		if err != nil {
			if tmp != "" {
				_ = os.Remove(tmp) // an upload that broke off
			}
			html(w, http.StatusBadRequest)
			return
		}
	}
	if !s.complete(w, r, form, tmp, md5hex) && tmp != "" {
		_ = os.Remove(tmp) // upload_cleanup
	}
}

type counted struct {
	r io.Reader
	s *Server
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.s.mu.Lock()
	c.s.recv += int64(n)
	c.s.mu.Unlock()
	return n, err
}

// complete is the view upload_complete. It reports whether tmp was taken over.
// The hour of the signature is compared here, when the whole body has come.
func (s *Server) complete(w http.ResponseWriter, r *http.Request, form map[string]string, tmp, md5hex string) bool {
	if s.viewLimited(w, r, "upload") {
		return false
	}
	if cookie, err := r.Cookie("csrftoken"); err == nil && cookie.Value != "" { // browser mode
		w.Header().Set("Location", "/collections")
		html(w, http.StatusFound)
		return false
	}
	if s.opt.PushDisabled {
		serverError(w)
		return false
	}
	id, err := strconv.Atoi(form["collection"])
	c, aerr := parseAuth(r.Header.Get("Authorization"))
	s.mu.Lock()
	defer s.mu.Unlock()
	var coll *collection
	for _, x := range s.state.collections {
		if x.id == id {
			coll = x
		}
	}
	if err != nil || aerr != nil || coll == nil || tmp == "" ||
		!s.valid(c, "upload", coll.name, form["name"], form["tag"]) || !s.mayPush(c, coll) {
		serverError(w)
		return false
	}
	message, kept, err := s.store(coll, c.user, form["name"]+":"+form["tag"], tmp, md5hex)
	if err != nil {
		serverError(w)
		return kept
	}
	writeJSON(w, http.StatusOK, map[string]string{"message": message})
	return kept
}

// mediaRoot is where a real server keeps images; the length of a path in it
// is limited.
const mediaRoot = "/var/www/images"

// store is upload_container, called with mu held.
func (s *Server) store(coll *collection, user, nameTag, tmp, md5hex string) (message string, kept bool, err error) {
	const done = "Upload Complete"
	if !slices.Contains(coll.owners, user) {
		return done, false, nil // a superuser who is no owner: thrown away
	}
	name, tag, ok := parseImage(nameTag)
	if !ok {
		return "", false, fmt.Errorf("name %q", nameTag)
	}
	if len(filepath.Join(mediaRoot, coll.name, storageName(name, tag, md5hex))) > 255 {
		return "Filename too long!\nMust be less than 255 characters", false, nil
	}
	if filepath.Base(coll.name) != coll.name { // a build's collection: its one name
		name = coll.name
	}
	old := s.find(coll.name, name, tag)
	if old != nil && old.frozen {
		return fmt.Sprintf("library/%s:%s@%s already exists.", name, tag, md5hex), false, nil
	}
	path, err := s.place(coll, tmp, name, tag, md5hex)
	if err != nil {
		return "", false, err
	}
	if old != nil {
		// The hook on the old row removes its file, also when the new row's
		// file is the same: the bytes are lost.
		_ = os.Remove(old.file)
		s.drop(old)
	}
	k := s.newContainer(coll, name, tag, md5hex, path)
	s.state.pending = append(s.state.pending, k.id)
	if s.opt.Worker {
		s.mu.Unlock()
		s.RunWorker()
		s.mu.Lock()
	}
	return done, true, nil
}
