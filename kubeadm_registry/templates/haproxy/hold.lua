-- A write without a writer waits, 8 s at most, until the agent has named one.
local function hold(name, backend)
  core.register_action(name, {"http-req"}, function(txn)
    for _ = 1, 160 do
      if txn.f:nbsrv(backend) > 0 then return end
      core.msleep(50)
    end
  end)
end
hold("hold", "writer")
hold("hold_new", "newwork")
